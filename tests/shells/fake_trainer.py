"""Stands for the interpreter of pods: a trainer and a server that honour the contract and need no torch.

Called as `fake -m herdsman_trainer --config FILE`. What each attempt of a resource does is read from the JSON file
named by FAKE_PLAN: {"<name>": ["hold", 42, "done", ...]}, one entry an attempt, the last one repeated.

done      progress, an artifact, exit code 0            hold   works until SIGTERM (saves, 75) or until a file `release`
42, 43    a termination message with file and line      75     a temporary fault
kill      SIGKILL to itself                             crash  exit code 3 without a word
stubborn  works and ignores SIGTERM
"""

import hashlib
import http.server
import json
import os
import signal
import sys
import time
from pathlib import Path

KINDS = {
    "ModelImport": "model",
    "TokenizerMerge": "tokenizer",
    "LoRAMerge": "model",
    "InstructionSet": "dataset",
    "Evaluation": "report",
}


def main():
    config = json.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
    sys.stdout.write(f"started {' '.join(sys.argv[1:3])} threads {os.environ['OMP_NUM_THREADS']}\n")
    sys.stdout.flush()
    serve(config) if config["kind"] == "ModelServer" else train(config)


def behaviour(config):
    plan = json.loads(Path(os.environ["FAKE_PLAN"]).read_text()) if "FAKE_PLAN" in os.environ else {}
    steps = plan.get(config["owner"]["name"], ["done"])
    return steps[min(config["attempt"], len(steps)) - 1]


def train(config):
    workspace = Path(config["workspace"]["path"])
    workspace.mkdir(parents=True, exist_ok=True)
    what = behaviour(config)
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    (workspace / "started").write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}")
    if what in ("hold", "stubborn"):
        progress(workspace, 1)
        while not (workspace / "release").exists() and (what == "stubborn" or not stopped):
            time.sleep(0.01)
        if stopped:
            (workspace / "saved").write_text("step 1")
            end(75, {"reason": "Interrupted", "message": "Stopped on request.", "step": 1})
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "crash":
        sys.exit(3)
    if what in (42, 43, 75):
        reason = {42: "BadInput", 43: "Diverged", 75: "Temporary"}[what]
        end(
            what,
            {
                "reason": reason,
                "message": "No output in this record.",
                "file": "zh.jsonl",
                "line": 7,
                "hint": "Add it.",
            },
        )
    progress(workspace, 2)
    publish(config, workspace)


def publish(config, workspace):
    target = workspace / "artifact"
    contract = {
        "kind": KINDS.get(config["kind"], "adapter"),
        "claim": config["workspace"]["claim"],
        "path": f"{config['workspace']['relative']}/artifact",
        "digest": hashlib.sha256(config["owner"]["uid"].encode()).hexdigest(),
        "bytes": 4,
    }
    if not target.exists():
        draft = workspace / "artifact.tmp"
        draft.mkdir()
        (draft / "data").write_text("data")
        manifest = {
            "artifact": contract,
            "files": {"data": {"bytes": 4, "sha256": "0" * 64}},
            "owner": config["owner"],
            "attempt": config["attempt"],
            "report": [{"name": "heldout_loss", "value": "2.125"}],
            "created": "2026-01-01T00:00:00Z",
            "herdsman": "0",
        }
        (draft / "herdsman-artifact.json").write_text(json.dumps(manifest))
        draft.rename(target)
    end(0, {"reason": "Succeeded", "artifact": contract})


def progress(workspace, step):
    text = json.dumps(
        {
            "percent": step * 50,
            "step": step,
            "totalSteps": 2,
            "tokensPerSecond": 347,
            "estimatedRemainingSeconds": 2 - step,
            "activity": "training",
            "metrics": [{"name": "loss", "value": "5.3125"}],
        }
    )
    beside = workspace / "progress.tmp"
    beside.write_text(text)
    beside.rename(workspace / "progress.json")


def end(code, message):
    Path(os.environ["HERDSMAN_TERMINATION_FILE"]).write_text(json.dumps(message))
    sys.exit(code)


def serve(config):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/readyz" else 404)
            self.end_headers()

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            words = asked["messages"][-1]["content"].split()
            key = os.environ.get("HERDSMAN_API_KEY")
            if key and self.headers["Authorization"] != f"Bearer {key}":
                words = ["bad"]
            self.send_response(200 if words != ["bad"] else 400)
            self.end_headers()
            if words == ["bad"]:
                self.wfile.write(json.dumps({"error": {"message": "this is not allowed"}}).encode())
                return
            for word in reversed(words):
                event = {"choices": [{"delta": {"content": f"{word} "}}]}
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *_):
            pass

    if behaviour({**config, "attempt": 1}) == "crash":
        sys.exit(3)
    http.server.ThreadingHTTPServer(("127.0.0.1", config["port"]), Answer).serve_forever()


main()
