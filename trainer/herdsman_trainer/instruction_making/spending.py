"""Tokens and money: what was spent, and whether the budget allows more."""

from dataclasses import dataclass
from decimal import Decimal

from herdsman.api.v1alpha1.generation import Budget, Price

_MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Usage:
    """What requests used."""

    requests: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return self.prompt_tokens + self.reply_tokens

    def __add__(self, other: "Usage") -> "Usage":
        """Return both together."""
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.reply_tokens + other.reply_tokens,
        )


def cost(usage: Usage, price: Price) -> Decimal:
    """Return what the tokens cost, exactly."""
    sent = usage.prompt_tokens * Decimal(str(price.input_per_million))
    received = usage.reply_tokens * Decimal(str(price.output_per_million))
    return (sent + received) / _MILLION


def spent(usage: Usage, budget: Budget, price: Price | None) -> str | None:
    """Return which part of the budget is used up, as a sentence names it; None while there is some left."""
    if budget.requests is not None and usage.requests >= budget.requests:
        return f"the budget of {budget.requests:,} requests"
    if budget.tokens is not None and usage.tokens >= budget.tokens:
        return f"the budget of {budget.tokens:,} tokens"
    if budget.cost is not None and price is not None and cost(usage, price) >= Decimal(str(budget.cost)):
        return f"the budget of {budget.cost:g} {price.currency}"
    return None


def tokens_of(text: str) -> int:
    """Return about how many tokens a text has, where an API does not say it: four letters of an alphabet are one."""
    wide = sum(character > "\u2e7f" for character in text)
    return wide + (len(text) - wide + 3) // 4
