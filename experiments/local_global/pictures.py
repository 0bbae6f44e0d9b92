"""What copied tokens cost by their place in the span, the price of a smaller window, and caches by length, as PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.local_global.arms import ALL_GLOBAL, ALL_LOCAL, INTERLEAVED, SPARSE, Workload, model_of
from experiments.local_global.copying import FIRST_COUNTED
from experiments.local_global.costs import Costs, formula_bytes
from experiments.local_global.findings import by_arm, over_seeds, relative_perplexity
from experiments.local_global.worker import Result
from experiments.plotting import pyplot

COLOURS = {ALL_GLOBAL: "black", INTERLEAVED: "tab:blue", SPARSE: "tab:orange", ALL_LOCAL: "tab:red"}


def draw(results: Sequence[Result], costs: Costs, workload: Workload, path: Path) -> None:
    """Three panels, every arm in each; of the window those that have one."""
    figure, (spans, windows, caches) = pyplot().subplots(1, 3, figsize=(14, 4.2))
    lengths = 2 ** np.arange(4, 18)
    for arm, own in by_arm(results).items():
        style = {"color": COLOURS[arm], "label": f"{arm} ({len(own)})", "lw": 1.3, "marker": "."}
        spans.plot(np.mean([result.copying.by_offset for result in own], axis=0), **style)
        spans.axhline(over_seeds(own, lambda c: c.originals).mean, color=COLOURS[arm], lw=0.7, ls=":")
        if len(own[0].windows) > 1:
            found = {int(window): relative_perplexity(own, window) for window in own[0].windows}
            halves = [each.half if each.count > 1 else 0 for each in found.values()]
            windows.errorbar(list(found), [each.mean for each in found.values()], halves, capsize=3, **style)
        config = model_of(arm, workload)
        bytes_of = [formula_bytes(config, int(length), 4) / 1e6 for length in lengths]
        caches.plot(lengths, bytes_of, color=COLOURS[arm], lw=1.3, label=arm)
        for each in costs.caches:
            if each.arm == arm:
                caches.plot(each.length, each.arrays / 1e6, "o", color=COLOURS[arm], ms=4)
    spans.axvline(FIRST_COUNTED - 0.5, color="black", lw=0.7, ls="--")
    spans.set_xlabel("place in a copied span (dotted: the originals)")
    spans.set_ylabel("nats per token")
    windows.axhline(1, color="black", lw=0.7, ls=":")
    windows.set_xscale("log", base=2)
    windows.set_xlabel(f"window at inference, trained with {workload.sliding_window}")
    windows.set_ylabel("perplexity of text / that of the trained window")
    caches.set_xscale("log", base=2)
    caches.set_yscale("log")
    caches.set_xlabel("tokens (dots: arrays of the model)")
    caches.set_ylabel("keys and values, MB")
    for panel in (spans, windows, caches):
        panel.legend(fontsize=7, title="layers" if panel is caches else "layers (seeds)", title_fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot().close(figure)
