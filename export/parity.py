"""How far an exported artifact is from the module it came from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chattts_serving.errors import ConfigError


@dataclass(frozen=True)
class ParityResult:
    """One comparison of an artifact with its source.

    Attributes:
        name: what was compared, e.g. "vocos".
        difference: largest absolute difference found; a count of differing items where items must be equal.
        allowed: largest difference that still passes; 0 where both must be equal.
    """

    name: str
    difference: float
    allowed: float

    def check(self) -> None:
        """Refuse an artifact that is too far from its source.

        Raises:
            ConfigError: the difference is above `allowed`, or not a number.
        """
        if math.isnan(self.difference) or self.difference > self.allowed:
            raise ConfigError(
                f"export of '{self.name}' differs from its source by {self.difference:.3g}; "
                f"allowed is {self.allowed:.3g} at most"
            )
