"""What keeps one bad batch out of the weights: a loss that is no number, or a gradient far outside its history.

A gradient is too large if its norm is `spike_factor` times the median of the last `spike_window` norms that were taken.
The median does not move with a few outliers, and follows a norm that rises slowly. PaLM (arXiv:2204.02311, 5.1) went
back and left out the batches around a spike; OLMo 2 (arXiv:2501.00656, 3) skips the step. Here the step is skipped, and
several in a row go back.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from mini_chat.config import Training


@dataclass
class Guard:
    """Judges steps by what went before; the history is part of a checkpoint, so that going on judges alike.

    Args:
        norms: gradient norms of the last steps that were taken, at most `spike_window`.
    """

    settings: Training
    norms: list[float] = field(default_factory=list)

    def fault(self, loss: float, grad_norm: float) -> str:
        """Why a step must not be taken, or "" where it may; a norm is judged once the window is full."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"loss {loss} gradient norm {grad_norm}"
        if not self.settings.spike_factor or len(self.norms) < self.settings.spike_window:
            return ""
        median = statistics.median(self.norms)
        if grad_norm <= self.settings.spike_factor * median:
            return ""
        return (
            f"gradient norm {grad_norm:.3g} is over {self.settings.spike_factor:g} times {median:.3g}, "
            f"the median of the last {len(self.norms)}"
        )

    def accept(self, grad_norm: float) -> None:
        """Remember the norm of a step that was taken."""
        self.norms.append(grad_norm)
        del self.norms[: -self.settings.spike_window]
