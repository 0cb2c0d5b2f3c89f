"""What the soak's callers say."""

from __future__ import annotations

from chattts_client import SynthesisOptions

# A stream of minutes, so that whoever leaves it leaves in the middle: where a gRPC stream is cancelled at the very
# moment of its end, Triton 2.51 can crash.
ENDLESS = "This sentence takes very long to say. " * 20
ENDLESS_OPTIONS = SynthesisOptions(seed=1, skip_refine=True, min_new_tokens=2_048)

CONTROL = "One sentence comes first. 今天天气真不错，我们一起去公园散步，好吗？"
CONTROL_TOKENS = 120
CONTROL_OPTIONS = SynthesisOptions(
    seed=42, skip_refine=True, speaker="default", min_new_tokens=40, max_new_tokens=CONTROL_TOKENS
)
