"""Eligibility: may this device join the round? Reads no clock and no store."""

from dataclasses import dataclass

from device_runtime.errors import ConfigError
from device_runtime.wire import VERSION, Cause, CheckIn, forbidden_by


@dataclass(frozen=True)
class Policy:
    min_examples: int = 10  # typed utterances waiting on the device
    min_separation: int = 1  # rounds: a device counted in round t may join round t + min_separation at the earliest

    def __post_init__(self) -> None:
        if self.min_separation < 1:
            raise ConfigError("policy.min_separation", f"expected at least 1, found {self.min_separation}", "correct it")


def decide(check_in: CheckIn, last_counted: int | None, round: int, tokenizer: str, policy: Policy) -> Cause | None:
    """The first cause that keeps the device out of `round`, or None if it may join.

    last_counted is the last round that counted this device; tokenizer the SHA-256 of the vocabulary the task trains.
    """
    if check_in.version != VERSION:
        return Cause.UNSUPPORTED_VERSION
    if check_in.tokenizer != tokenizer:
        return Cause.WRONG_MODEL
    if (forbidden := forbidden_by(check_in.conditions)) is not None:
        return forbidden
    if check_in.examples < policy.min_examples:
        return Cause.TOO_FEW_EXAMPLES
    if last_counted is not None and round - last_counted < policy.min_separation:
        return Cause.REPORTED_RECENTLY
    return None
