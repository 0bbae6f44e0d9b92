"""The study: arms and seeds are trained and measured in a few processes; the tables are of what is there.

Two folders. `out` has what may be thrown away: vocabulary, pre-trained encoder, text, logs. `results` has one small
JSON for each finished run, figures only, which can be committed: on another machine the study goes on with what is
missing. (There the encoder is pre-trained anew, from the same text and seed.) Once the encoder is there, several
commands may work on the same two folders at once.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from experiments.kept import check_made_with
from experiments.kept import digest as made_of
from experiments.relation_extraction.arms import SIZES, Run, Size, arm_named, arms_of, runs_of
from experiments.relation_extraction.corpus import Corpus
from experiments.relation_extraction.datasets import FOLDERS, MADE_UP, Dataset, read_dataset, speaks
from experiments.relation_extraction.encoders import check_folder
from experiments.relation_extraction.pretraining import pretrain, read_pretraining
from experiments.relation_extraction.processes import WORKER, in_processes, shared_out
from experiments.relation_extraction.report import Part
from experiments.relation_extraction.worker import (
    Job,
    Runs,
    Setting,
    carry_out_all,
    read_result,
    write_setting,
)
from experiments.runs import BENCHMARKS, run_in_process, say, single_thread, worker_environment, write_json
from experiments.shared_folder import training_novels
from zoo.errors import UserError

RESULTS = BENCHMARKS / "relation-extraction"
"""Where results lie that are committed, a folder for each data set that is known by name."""
PRETRAINING = "pretraining.json"
ENCODER_SIZES = (
    "embed_dim", "num_layers", "num_heads", "hidden_dim", "vocab_size", "lowercase", "passage_tokens", "novels_share",
    *(field.name for field in fields(Size) if field.name.startswith("mlm_")),
)  # fmt: skip
"""Fields of `Size` that vocabulary and pre-trained encoder depend on."""


def setting_of(dataset: Dataset, encoder: Path | None) -> Setting:
    """Sizes and encoder for a data set."""
    quick = dataset.name == MADE_UP
    size = "bert" if encoder is not None else dataset.size
    return Setting(dataset, SIZES[size], None if encoder is None else str(encoder), novels=not quick)


def results_of(setting: Setting, out: Path) -> Path:
    """Where results go unless said otherwise: into the repository for our own encoder and data sets known by name."""
    committed = setting.encoder is None and setting.dataset.name in FOLDERS
    return RESULTS / setting.dataset.title if committed else out / "results"


@dataclass(frozen=True, eq=False)
class Plan:
    """What is asked for of one data set, and where everything lies."""

    setting: Setting
    """Data set, sizes, encoder."""
    out: Path
    """Vocabulary, encoder, logs."""
    results: Path
    """A JSON a run."""
    corpus: Corpus
    """What is read."""
    runs: tuple[Run, ...]
    """All that the tables are to have."""
    fingerprint: str
    """Of the data."""

    def path(self, run: Run) -> Path:
        """Of its result."""
        return self.results / f"{run.name}.json"

    @property
    def missing(self) -> list[Run]:
        """Those without one."""
        return [run for run in self.runs if not self.path(run).is_file()]

    def jobs(self) -> list[Job]:
        """What is left to do."""
        return [
            Job(run, made_with(self.setting, run.arm, self.fingerprint), str(self.path(run).resolve()))
            for run in self.missing
        ]


def plan_of(setting: Setting, out: Path, results: Path, names: tuple[str, ...], seeds: tuple[int, ...]) -> Plan:
    """One data set of the study; wrong data, arms, encoders and results are refused before anything is trained.

    Args:
      names: arms; none: those of the size.

    Raises:
      UserError: wrong data, arm or encoder; results of other data, sizes or text.
    """
    corpus = read_dataset(setting.dataset)
    size_name = "bert" if setting.encoder is not None else setting.dataset.size
    arms = arms_of(names, size_name, corpus.relations, speaks(corpus), setting.encoder is not None)
    if setting.encoder is not None:
        check_folder(Path(setting.encoder), setting.size)
    plan = Plan(setting, out, results, corpus, tuple(runs_of(arms, seeds)), setting.dataset.fingerprint())
    for run in plan.runs:
        check_made_with(plan.path(run), made_with(setting, run.arm, plan.fingerprint), "other data, sizes or novels")
    return plan


def carry_out(plans: Sequence[Plan], *, jobs: int = 1, here: bool = False) -> None:
    """Trains and measures what is missing: first the encoders, then the runs of all data sets.

    Args:
      jobs: processes at a time, of one thread each if there are several.
      here: everything in this process, which saves the seconds that a process takes to start.

    Raises:
      UserError: a run failed; a folder has an encoder of another setting.
    """
    unfinished = [plan for plan in plans if plan.missing]
    for plan in unfinished:
        (plan.out / "runs").mkdir(parents=True, exist_ok=True)
        plan.results.mkdir(parents=True, exist_ok=True)
        write_setting_once(plan.setting, plan.fingerprint, plan.out)
    wanted = [plan for plan in unfinished if any(needs_pretraining(run, plan.setting) for run in plan.missing)]
    if here:
        for plan in wanted:
            prepare(plan.setting, plan.corpus, plan.out, plan.results, here=True)
        for plan in unfinished:
            carry_out_all(plan.jobs(), Runs(plan.setting, plan.corpus, plan.out))
        return
    with ThreadPoolExecutor(jobs) as pool:
        begun = [
            pool.submit(prepare, plan.setting, plan.corpus, plan.out, plan.results, alone=jobs == 1) for plan in wanted
        ]
        try:
            for one in begun:
                one.result()
        except UserError:
            pool.shutdown(wait=False, cancel_futures=True)  # one failed: no other begins
            raise
    in_processes([(plan.out, part) for plan in unfinished for part in shared_out(plan.jobs(), jobs)], jobs)


def part_of(plan: Plan) -> Part:
    """What there is, for the report. Raises `UserError` if it is nothing."""
    missing, results, size = plan.missing, plan.results, plan.setting.size
    found = [read_result(plan.path(run)) for run in plan.runs if run not in missing]
    if not found:
        raise UserError(f"{results} has no result of these arms and seeds: leave --only-report out")
    corpus, pretraining = plan.corpus, results / PRETRAINING
    return Part(
        name=plan.setting.dataset.title,
        bags=(len(corpus.train), len(corpus.val), len(corpus.test)),
        encoder=encoder_told(plan.setting),
        size=size,
        pretraining=read_pretraining(pretraining) if pretraining.is_file() else None,
        runs=found,
        missing=[run.name for run in missing],
    )


def needs_pretraining(run: Run, setting: Setting) -> bool:
    """Whether a run begins with our own pre-trained encoder."""
    own = setting.encoder is None and setting.size.mlm_steps > 0
    return own and arm_named(run.arm).encoder in ("pre-trained", "pcnn")


def prepare(
    setting: Setting, corpus: Corpus, out: Path, results: Path, *, here: bool = False, alone: bool = True
) -> None:
    """Vocabulary and pre-trained encoder in `out`; what the pre-training came to, in `results`. here: in this
    process; else alone: with all threads of the machine."""
    kept = out / PRETRAINING
    if not kept.is_file():
        say(f"{setting.dataset.title}: vocabulary and pre-training")
        if here:
            pretrain(corpus, setting.size, out, with_novels=setting.novels)
        else:
            log = out / "runs" / "pretraining.log"
            environment = worker_environment(out) | ({} if alone else single_thread())
            run_in_process("pre-training", WORKER, [str(out), "pretrain"], log, environment)
    if not (results / PRETRAINING).is_file():
        write_json(json.loads(kept.read_text()), results / PRETRAINING)


def made_with(setting: Setting, arm: str, fingerprint: str) -> str:
    """A digest of everything that a run of an arm comes from, its seed apart."""
    return made_of([asdict(setting.size), asdict(arm_named(arm)), *sources_of(setting, fingerprint)])


def sources_of(setting: Setting, fingerprint: str) -> list[Any]:
    """[data, folder of the encoder, novels]."""
    encoder = None if setting.encoder is None else Path(setting.encoder).name
    novels = [Path(path).name for path in training_novels()] if setting.novels and encoder is None else []
    return [fingerprint, encoder, novels]


def write_setting_once(setting: Setting, fingerprint: str, out: Path) -> None:
    """Raises `UserError` if the folder's vocabulary and encoder are of another setting. Rates and epochs of what is
    trained on them may be others."""
    sizes = {name: value for name, value in asdict(setting.size).items() if name in ENCODER_SIZES}
    digest, kept = made_of([sizes, *sources_of(setting, fingerprint)]), out / "setting.digest"
    if kept.is_file() and kept.read_text().strip() != digest:
        raise UserError(f"{out} has a vocabulary and an encoder of other data, sizes or novels: give another --out")
    write_setting(setting, out)
    kept.write_text(digest + "\n")


def encoder_told(setting: Setting) -> str:
    """For the report."""
    size = setting.size
    if setting.encoder is not None:
        return f"the folder {Path(setting.encoder).name}"
    return f"a BERT of {size.num_layers} layers and width {size.embed_dim}, {size.vocab_size:,} pieces at most"
