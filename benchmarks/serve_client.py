"""Asks a server from a process of its own, so that the server is measured: commands on stdin, figures on stdout.

A command is a line of JSON: {"port", "path", "kind": "closed" | "poisson" | "once", ...}; the answer is one too. Bodies
are made by whoever commands; of answers only the times of their events are kept. Plain sockets, no HTTP library.
"""

import asyncio
import http.client
import json
import random
import sys
import time


class Times:
    """When an answer was asked for, and when its pieces came."""

    def __init__(self) -> None:
        self.asked = time.monotonic()
        self.pieces: list[tuple[float, int]] = []
        self.status = 0

    def to_json(self) -> dict:
        return {"asked": self.asked, "pieces": self.pieces, "status": self.status}


def tokens_of(data: bytes, chunk: str) -> int:
    """Tokens in an event: vLLM's and OpenAI's shape has text, llama.cpp's own has ids."""
    event = json.loads(data)
    if chunk == "llama.cpp":
        return len(event.get("tokens") or ())
    choices = event.get("choices") or ()
    return sum(bool(choice.get("text")) * choice["text"].count(" ") for choice in choices)


async def ask(command: dict, body: bytes) -> Times:
    """Ask once and read the stream to its end."""
    times = Times()
    reader, writer = await asyncio.open_connection("127.0.0.1", command["port"], limit=1 << 20)
    key = f"Authorization: Bearer {command['key']}\r\n" if command.get("key") else ""
    head = f"POST {command['path']} HTTP/1.1\r\nHost: x\r\n{key}Content-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    times.status = int((await reader.readline()).split()[1])
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            now = time.monotonic()
            if count := tokens_of(line[6:], command["chunk"]):
                times.pieces.append((now, count))
    writer.close()
    return times


async def closed(command: dict) -> list[Times]:
    """So many clients, each of which asks again as soon as it has its answer, for so many seconds."""
    bodies = [json.dumps(body).encode() for body in command["bodies"]]
    until = time.monotonic() + command["seconds"]
    found: list[Times] = []

    async def client(number: int) -> None:
        turn = number
        while turn == number or time.monotonic() < until:
            found.append(await ask(command, bodies[turn % len(bodies)]))
            turn += command["clients"]

    await asyncio.gather(*(client(number) for number in range(command["clients"])))
    return found


async def poisson(command: dict) -> list[Times]:
    """Clients that come when they like, so many a second on average, whether others have been answered or not."""
    bodies = [json.dumps(body).encode() for body in command["bodies"]]
    chance = random.Random(1)
    until = time.monotonic() + command["seconds"]
    asking: list[asyncio.Task[Times]] = []
    while time.monotonic() < until:
        asking.append(asyncio.create_task(ask(command, bodies[len(asking) % len(bodies)])))
        await asyncio.sleep(chance.expovariate(command["rate"]))
    return list(await asyncio.gather(*asking))


def once(connection: http.client.HTTPConnection, command: dict) -> Times:
    """Ask once over a connection that stays open, as clients' libraries do."""
    body = json.dumps(command["bodies"][0]).encode()
    times = Times()
    connection.request("POST", command["path"], body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    times.status = answer.status
    while line := answer.readline():
        if line.startswith(b"data: {") and (count := tokens_of(line[6:], command["chunk"])):
            times.pieces.append((time.monotonic(), count))
    return times


def main() -> None:
    connection = None
    for line in sys.stdin:
        command = json.loads(line)
        began = time.monotonic()
        if command["kind"] == "once":
            connection = connection or http.client.HTTPConnection("127.0.0.1", command["port"], timeout=60)
            found = [once(connection, command)]
        else:
            found = asyncio.run({"closed": closed, "poisson": poisson}[command["kind"]](command))
        answer = {"began": began, "ended": time.monotonic(), "requests": [each.to_json() for each in found]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
