"""What a batch costs and how often calls arrive, from recent ones: when a batch is worth waiting for."""

from __future__ import annotations

_MEMORY = 0.9  # weight of the past beside the latest batch or arrival
_OUTLIER = 4.0  # times what was expected; a batch that took longer was held up, as when the machine sleeps


class BatchCost:
    """Seconds of a batch, fixed + per_token x tokens: an exponentially weighted linear fit to recent batches."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Take a batch into account; one that took much longer than expected counts as _OUTLIER times that."""
        if self.known:
            seconds = min(seconds, _OUTLIER * (self.fixed + self.per_token * tokens))
        moments = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        sums = (self._weight, self._x, self._y, self._xx, self._xy)
        self._weight, self._x, self._y, self._xx, self._xy = (
            _MEMORY * old + new for old, new in zip(sums, moments, strict=True)
        )

    @property
    def known(self) -> bool:
        """Whether any batch was measured."""
        return self._weight > 0

    @property
    def per_token(self) -> float:
        """Seconds a token."""
        if not self.known:
            return 0.0
        variance = self._xx - self._x * self._x / self._weight
        mean = self._y / max(self._x, 1.0)
        if variance <= 1e-6 * self._xx:  # batches of one size tell nothing of the fixed part
            return mean
        return min(max((self._xy - self._x * self._y / self._weight) / variance, 0.0), mean)

    @property
    def fixed(self) -> float:
        """Seconds of a batch beside those of its tokens."""
        return max(self._y - self.per_token * self._x, 0.0) / self._weight if self.known else 0.0

    def seconds(self, tokens: int, batch_tokens: int) -> float:
        """Return the expected seconds of this many tokens in full batches."""
        return self.fixed * -(-tokens // batch_tokens) + self.per_token * tokens


class Arrivals:
    """The mean time between arrivals, in seconds, exponentially weighted; infinite before the second one."""

    def __init__(self) -> None:
        self._last: float | None = None
        self.gap = float("inf")

    def add(self, now: float) -> None:
        """Take an arrival at the time `now` into account."""
        if self._last is not None:
            gap = max(now - self._last, 0.0)
            # after a pause the mean is the pause, so that a call that comes alone does not wait for others
            self.gap = gap if gap > self.gap or self.gap == float("inf") else _MEMORY * self.gap + (1 - _MEMORY) * gap
        self._last = now
