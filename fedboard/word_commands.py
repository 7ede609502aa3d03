"""`fedboard task count-words`, `task counts` and `data words`: which words people typed."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from device_runtime import durable
from device_runtime.errors import RunError
from device_runtime.shown import rounded_up
from fedboard import console
from fedboard.options import Json, emit
from fedboard.task_commands import (
    DAYS,
    ROUNDS,
    Folder,
    HelperKey,
    Insecure,
    Key,
    Name,
    Server,
    TokenFile,
    WhoSees,
    named_aggregation,
    say,
    say_signed,
)

MOST_PEOPLE, MOST_ONES = 1_000_000_000, 200_000
SHOWN = 20  # words

LeastPeople = Annotated[
    int,
    typer.Option(
        min=1, max=MOST_PEOPLE, help="People who must have typed a word before it is told."
    ),
]


def task_count_words(
    name: Name,
    words: Annotated[
        Path,
        typer.Option(
            help="The public list: a word a line, in alphabetical order, as `fedboard data words` "
            "writes it. Devices are asked about no other word."
        ),
    ],
    least_people: LeastPeople = 20,
    most_words: Annotated[
        int,
        typer.Option(
            min=1, max=MOST_ONES, help="Words that one device marks at most, chosen by chance."
        ),
    ] = 500,
    noise_multiplier: Annotated[
        float,
        typer.Option(
            min=0,
            max=1e6,
            help="Noise on each sum: its standard deviation is this times the square root of "
            "--most-words. 0: none, and nothing is claimed.",
        ),
    ] = 0.0,
    delta: Annotated[
        float, typer.Option(min=1e-300, max=0.5, help="Delta at which epsilon is told.")
    ] = 1e-10,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with rules and population, as for `fedboard serve`."),
    ] = None,
    aggregation: WhoSees = None,
    helper_key: HelperKey = None,
    dir: Folder = None,
    server: Server = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Ask devices which words of a public list were typed on them: one bit a person and word, in
    sums alone, once a person. Certified at once if the maker's key is on this machine.

    Masked answers cannot be looked at: that so many people typed a word holds against honest
    phones. Counts that leave a real fleet should carry noise.
    """
    from device_runtime.config import from_toml
    from device_runtime.counts import read_list
    from device_runtime.table import Table
    from device_runtime.weights import digest
    from device_runtime.wire import DAY_S
    from fedboard.certificates import certified, consent
    from fedboard.operator import connect
    from fedboard.run import kept_key
    from fedboard.word_lists import noise_once
    from server.settings import ServerSettings
    from server.task import TaskSettings, for_list, settings_of

    settings = settings_of(from_toml(ServerSettings, config)) if config else TaskSettings()
    try:
        data = words.read_bytes()
    except OSError as error:
        raise RunError(
            words, f"cannot be read ({error.strerror})", "make it with `fedboard data words`"
        ) from None
    read_list(data, str(words))
    signer = kept_key(key)
    with connect(dir, server, token_file, insecure) as operator:
        asked = named_aggregation(aggregation) or settings.aggregation
        given = consent(operator, asked, helper_key or settings.helper, dir is not None)
        settings = replace(
            settings,
            name=name,
            aggregation=given.aggregation,
            helper=given.helper,
            is_beside=given.is_beside,
            noise=noise_once(noise_multiplier, delta, settings.rules.rounds),
        )
        settings = for_list(settings, Table(digest(data), most_words, least_people))
        operator.put_list(data)
        report = operator.create(settings)
        if signer is not None:
            given = replace(given, asked=settings)
            report, terms = certified(operator, name, signer, ROUNDS, DAY_S * DAYS, given)
            say_signed(terms, as_json)
    say(report, as_json)


def task_counts(
    name: Name,
    out: Annotated[
        Path | None, typer.Option(help="File to write, such as counts.tsv: a word and its count.")
    ] = None,
    dir: Folder = None,
    server: Server = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """What a task has counted so far: the words that at least so many people typed."""
    from fedboard.operator import connect
    from fedboard.run import require_result_file, writable
    from fedboard.word_lists import is_tsv, to_tsv

    if out is not None:
        require_result_file(out, "counts of words", is_tsv)
    with connect(dir, server, token_file, insecure) as operator:
        report = operator.counts(name)
    if out is not None:
        with writable(out) as place:
            durable.share(place, to_tsv(report))
    if as_json:
        return emit(asdict(report))
    console.say(
        f"{name}: {report.people:,} people in {report.rounds:,} sums, {len(report.counts):,} of "
        f"{report.listed:,} words typed by at least {report.least_people:,} of them"
    )
    if report.deviation:
        console.say(
            f"each count has noise of standard deviation {report.deviation:.4g}: a word is told "
            f"from a count of {report.told_from:.4g} on"
        )
    if report.epsilon is None:
        console.say("no noise was added, and no privacy guarantee (epsilon) is claimed")
    else:
        epsilon = rounded_up(report.epsilon)
        console.say(f"each who took part spent epsilon {epsilon} at {report.delta:g}")
    shown = list(report.counts.items())[:SHOWN]
    rows = [[word, f"{count:,}"] for word, count in shown]
    console.table("words that most people typed", ["word", "people"], rows)
    if out is not None:
        console.say(f"{out}: {len(report.counts):,} words")


def data_words(
    out: Annotated[Path, typer.Option(help="File to write, such as words.txt.")],
    data: Annotated[
        str,
        typer.Argument(help="`chitchat`, a corpus directory, `stackoverflow` or `shakespeare`."),
    ] = "chitchat",
    least_people: LeastPeople = 3,
    as_json: Json = False,
) -> None:
    """Write a public list of words for `fedboard task count-words`: those that at least so many
    users of a corpus typed. Whoever reads the list learns them, so make it of public text.
    """
    from device_runtime import counts
    from fedboard.run import require_result_file, writable
    from fedboard.word_lists import people_of
    from model import corpora

    require_result_file(out, "a list of words", lambda path: _is_list(path))
    people = people_of(corpora.load(data).train)
    words = [word for word, count in people.items() if count >= least_people]
    listed = [word for word in words if len(word) <= counts.LONGEST]
    content = counts.to_list(listed)
    with writable(out) as place:
        durable.share(place, content)
    if as_json:
        return emit({"out": str(out), "words": len(listed), "least_people": least_people})
    console.say(
        f"{out}: {len(listed):,} of {len(people):,} words, each typed by at least {least_people:,} "
        "users"
    )


def _is_list(path: Path) -> bool:
    from device_runtime import counts
    from device_runtime.errors import ConfigError

    try:
        counts.read_list(path.read_bytes())
    except ConfigError:
        return False
    return True
