"""What a call of Snakemake shows: a line for each job as it begins, its own lines, an error in a line, and at the end
the tables that were asked for with what comes next. Imports neither torch nor Snakemake.

Snakemake's own file, .snakemake/log/*.log, keeps all that it says.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from selfsup.layout import RunPaths

# Messages of Snakemake's that say nothing of the work; they have no event of their own.
NO_NEWS = (
    "Assuming unrestricted shared filesystem usage",
    "Building DAG of jobs",
    "Using shell: ",
    "Select jobs to execute",
    "Removing temporary output",
    "Complete log(s): ",
    "Elapsed time: ",
)
NO_NEWS_EVENTS = ("workflow_started", "resources_info", "job_started")
ENDS = (".csv", ".md", ".tex")  # of a table's files
EMBED = "python workflow/scripts/embed.py --encoder {} --pictures FOLDER --output results/mine"


class ScreenLines(logging.Formatter):
    """Makes of Snakemake's records the lines of the screen; of those that have none, the empty text."""

    def __init__(self, otherwise: logging.Formatter, *, elsewhere: bool, nothing_to_do: Callable[[], Iterable[str]]):
        """otherwise: formats all other events. elsewhere: jobs run on other machines, so that their ends are news.
        nothing_to_do: what is added where nothing has to be done."""
        super().__init__()
        self._otherwise, self._elsewhere, self._nothing_to_do = otherwise, elsewhere, nothing_to_do
        self._done, self._total, self._messages = 0, 0, {}

    def format(self, record: logging.LogRecord) -> str:
        event = getattr(record, "event", None)
        name = event.name.lower() if event is not None else ""
        if own := getattr(self, f"_{name}", None) if name else None:
            return own(record, self.formatTime(record, "%H:%M:%S"))
        if name in NO_NEWS_EVENTS or (not name and str(record.msg).startswith(NO_NEWS)):
            return ""
        text = self._otherwise.format(record)
        return "\n".join([text, *self._nothing_to_do()]) if text.startswith("Nothing to be done") else text

    def _run_info(self, record: logging.LogRecord, clock: str) -> str:
        counts = dict(record.stats)
        self._total = counts.pop("total")
        return f"{clock} | {self._total} job{'s' * (self._total != 1)}: " + ", ".join(
            f"{count} {rule}" for rule, count in counts.items()
        )

    def _job_info(self, record: logging.LogRecord, clock: str) -> str:
        self._messages[record.jobid] = record.rule_msg or record.rule_name
        return f"{clock} | {self._done}/{self._total} done | {self._messages[record.jobid]}"

    def _job_finished(self, record: logging.LogRecord, clock: str) -> str:
        return f"{clock} | finished: {self._messages.get(record.job_id, '')}" if self._elsewhere else ""

    def _progress(self, record: logging.LogRecord, clock: str) -> str:
        self._done, self._total = record.done, record.total
        return ""

    def _error(self, record: logging.LogRecord, clock: str) -> str:
        """The exception of a failed command repeats the command; the line of its job is enough."""
        text = str(record.msg)
        return (
            "" if text.startswith("RuleException:") and "CalledProcessError" in text else self._otherwise.format(record)
        )

    def _job_error(self, record: logging.LogRecord, clock: str) -> str:
        told = [*record.log, *(f"{key} {value}" for key, value in record.aux.items())]
        why = f" ({', '.join(told)})" if told else ""
        return f"{clock} | failed or stopped: {self._messages.get(record.jobid, record.rule_name)}{why}"


class Screen(logging.StreamHandler):
    """Writes the lines that are not empty."""

    def emit(self, record: logging.LogRecord) -> None:
        """Nothing that goes wrong with a line may end a call whose jobs are training, but a reader that is gone."""
        try:
            text = self.format(record)
            if text and text != "None":
                self.stream.write(f"{text}\n")
                self.flush()
        except BrokenPipeError:
            raise
        except Exception:
            self.handleError(record)


def take_screen(logger: logging.Logger, **of_lines) -> None:
    """Let a screen of this kind stand in for Snakemake's own, with its filters, so that --quiet and -p go on as ever.

    of_lines: as of `ScreenLines`.
    """
    for former in [one for one in logger.handlers if one.name == "DefaultStreamHandler"]:
        screen = Screen(former.stream)
        screen.setFormatter(ScreenLines(former.formatter, **of_lines))
        for one in former.filters:
            screen.addFilter(one)
        logger.removeHandler(former)
        logger.addHandler(screen)


def closing_words(targets: Collection[str], tables: Mapping[str, Sequence[str]], results: Path) -> Iterator[str]:
    """Yield the tables among the targets, as they stand in Markdown, and what may come next.

    tables: {name: its experiments}.
    """
    asked = [name for name in tables if not {str(results / f"{name}{end}") for end in ENDS}.isdisjoint(targets)]
    made = [name for name in asked if (results / f"{name}.md").exists()]
    for name in made:
        yield "\n" + (results / f"{name}.md").read_text().partition("\n\n")[0]
    if made:
        files = ", ".join(str(results / f"{name}.md") for name in made)
        yield f"\nWhat each row is based on: {files}. Possible next steps:"
        yield "    make report    # table, curves and cost as one page to show to others: results/report.html"
    encoders = [path for name in made for one in tables[name] if (path := _an_encoder(results, one))]
    if encoders:
        yield f"    {EMBED.format(encoders[0])}    # what it finds alike in pictures of yours"


def _an_encoder(results: Path, experiment: str) -> Path | None:
    return next(iter(sorted(results.glob(str(RunPaths(Path(), experiment, "*").encoder.weights)))), None)
