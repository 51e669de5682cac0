"""The pages of the manual, compared with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import scache
from scache import errors
from scache.cache.statistics import Statistics
from scache.cli.commands.help import TOPICS, summary
from scache.clock import Clock
from scache.settings.declarations import RETIRED, SETTINGS, Setting
from scache.settings.loading import from_file, gather
from scache.store.schema import ours
from scache.vocabulary import COUNTERS
from tests.support.commands import ROOT
from tests.support.manual import PAGES, blocks, section

LIMIT_SETTINGS = [
    each
    for each in SETTINGS
    if (each.name.startswith("max_") and each.name != "max_idle")
    or each.name in ("ttl_limit", "audit_rows", "exchange_timeout", "descriptor_reserve")
]

LANGUAGES = {"python", "sh", "sql", "console", "text"}
"""Languages of fenced blocks. Each block but ``text`` is an example, which runs in a test."""

RUN_BY = {
    "postfix": {"sh": "test_recipe", "text": "test_manual"},
    "master": {"sh": "test_master"},
    "systemd": {"sh": "test_systemd"},
    "settings": {"text": "test_manual"},
    "monitoring": {"text": "tests/cli/test_exporter.py"},
    "datasette": {"sh": "test_questions"},
    "architecture": {"text": "a diagram"},
    "misses": {"sh": "test_examples", "text": "test_why, in other words"},
    "confined": {"sh": "not run: needs such a kernel", "text": "not run: lines of its log"},
    "sql": {"sh": "test_questions", "sql": "test_questions", "python": "test_examples"},
}
"""The test that runs the blocks of a page, by language; for other pages it is test_examples."""

PACKAGE = ROOT / "scache"

PLACES = [
    ("daemon/maintenance.py", "expire"),
    ("cache/cache.py", "expire"),
    ("cache/connections.py", "expire"),
    ("cache/connections.py", "_remove"),
    ("cache/descriptors.py", "close_parked"),
    ("protocol/request_parser.py", "max_message_size"),
    ("protocol/messages.py", "GRAMMAR"),
    ("protocol/messages.py", "Admin"),
    ("daemon/client_requests.py", "ANSWERS"),
]
"""Names in the code to which the page ``architecture`` leads."""


def columns(text: str, number: int) -> list[str]:
    """Return the cells of a column of the tables in Markdown, without their headers."""
    rows = re.findall(r"^\|(?!---)(.*)\|$", text, re.MULTILINE)
    return [re.split(r"(?<!\\)\|", row)[number].strip() for row in rows]


def test_topics_are_the_pages_of_the_manual() -> None:
    """Each file of the directory is a topic, and each topic is a file."""
    assert sorted(TOPICS) == sorted(PAGES)
    assert len(TOPICS) == len(set(TOPICS))


@pytest.mark.parametrize("topic", TOPICS)
def test_page_begins_with_a_title_and_a_summary(topic: str) -> None:
    """`scache help` lists the summary, which fits a terminal of 80 columns."""
    title, empty, line, empty_again, _ = PAGES[topic].split("\n", 4)
    assert re.fullmatch(r"# [\w ]+", title)
    assert empty == empty_again == ""
    assert line == summary(PAGES[topic])
    assert re.fullmatch(r"[A-Z][^\n]*\.", line)
    assert len(line) <= 80 - len("  architecture  ")


@pytest.mark.parametrize("topic", TOPICS)
def test_page_names_topics_that_exist(topic: str) -> None:
    """Each `scache help TOPIC` of a page leads to another page."""
    named = set(re.findall(r"`scache help ([\w-]+)`", PAGES[topic]))
    assert named <= {*TOPICS, "TOPIC"} - {topic}


@pytest.mark.parametrize("topic", TOPICS)
def test_every_block_of_a_page_is_run_by_a_test(topic: str) -> None:
    """Each block has a language, and a test runs the blocks of this language and page."""
    default = {"sh": "test_examples", "python": "test_examples", "console": "test_examples"}
    run_by = RUN_BY.get(topic, default)
    assert {block.language for block in blocks(PAGES[topic])} <= run_by.keys() & LANGUAGES


@pytest.mark.parametrize("topic", TOPICS)
def test_examples_of_a_page_fit_a_terminal_of_80_columns(topic: str) -> None:
    """`scache help` adds a margin of one column on each side."""
    lines = [line for block in blocks(PAGES[topic]) for line in block.text.splitlines()]
    assert max(map(len, lines), default=0) <= 78


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_settings_page_describes_every_setting(setting: Setting) -> None:
    """Key, option, variable, default and help are those of the code."""
    begin = f"`{setting.option}`, `{setting.variable}`. Default: `{setting.default}`."
    assert section(PAGES["settings"], setting.name).startswith(f"\n{begin}\n\n{setting.help}\n")


def test_settings_page_has_the_order_of_the_code() -> None:
    """It names the settings of earlier versions as well."""
    titles = re.findall(r"^### (.*)$", PAGES["settings"], re.MULTILINE)
    assert titles == [setting.name for setting in SETTINGS]
    assert all(f"`{name}`" in PAGES["settings"] for name in RETIRED)


def test_settings_page_shows_lines_of_a_file(tmp_path: Path) -> None:
    """They are TOML, and their values are accepted."""
    lines = re.findall(r"`(\w+ = [^`]+)`", PAGES["settings"])
    file = tmp_path / "scache.toml"
    file.write_text("".join(f"{line}\n" for line in lines))
    gather(from_file(file))
    assert len(lines) == 4


def test_settings_page_shows_classes_of_a_file(tmp_path: Path) -> None:
    """The tables are accepted."""
    (block,) = blocks(PAGES["settings"])
    file = tmp_path / "scache.toml"
    file.write_text(block.text)
    assert [each.name for each in gather(from_file(file)).settings.classes] == ["mx", "smtp"]


@pytest.mark.parametrize("setting", LIMIT_SETTINGS, ids=lambda setting: setting.name)
def test_limits_page_has_every_limit(setting: Setting) -> None:
    """Its default is that of the code."""
    (default,) = re.findall(rf"\*\*{setting.name}\*\* \((.*?)\)", PAGES["limits"])
    if setting.default == "0":
        assert default == "default: as many as open files allow, up to a million"
        return
    number, _, unit = default.partition(" ")
    factor = {"": 1, "s": 1, "KiB": 1024, "MiB": 1024**2}[unit]
    assert int(number.replace(",", "")) * factor == int(setting.default)


def test_limits_page_names_the_counters_of_limits() -> None:
    """Each counter that begins with limit_ is on the page."""
    for name in COUNTERS:
        if name.startswith("limit_"):
            assert f"`{name}`" in PAGES["limits"]


def test_sql_page_has_every_counter() -> None:
    """A counter is in the table by its name, or by the pattern for requests."""
    table = section(PAGES["sql"], "Counters")
    named = re.findall(r"`(\w+)`", "".join(columns(table, 0)))
    (pattern,) = (cell for cell in columns(table, 1) if "REQUEST is" in cell)
    requests = re.findall(r"`(\w+)`", pattern)
    outcomes = [name.removeprefix("REQUEST_") for name in named if name.startswith("REQUEST_")]
    others = [name for name in named if not name.startswith("REQUEST_")]
    of_requests = [f"{request}_{outcome}" for request in requests for outcome in outcomes]
    assert sorted(of_requests + others) == sorted(COUNTERS)


def test_sql_page_has_every_table_and_view() -> None:
    """It has no other names."""
    for title, kind in ("Tables", "table"), ("Views", "view"):
        named = re.findall(r"^\| `(\w+)` \|", section(PAGES["sql"], title), re.MULTILINE)
        assert sorted(named) == sorted(name for of, name in ours() if of == kind)


def test_python_page_has_every_method_and_error() -> None:
    """Both clients have the same methods."""
    methods = {name for name in dir(scache.Client) if not name.startswith("_")}
    assert methods == {name for name in dir(scache.AsyncClient) if not name.startswith("_")}
    named = {"*_many" if name.endswith("_many") else name for name in methods}
    errors_of_scache = {name for name in scache.__all__ if name not in ("AsyncClient", "Client")}
    for name in (named | errors_of_scache) - {"__version__", "ScacheError", "Found"}:
        assert re.search(rf"`(scache\.)?{re.escape(name)}(\(.*?\))?`", PAGES["python"]), name


def test_exit_codes_page_has_every_exit_code() -> None:
    """It has no other codes."""
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    table = PAGES["exit-codes"].split("## Signals")[0]
    assert [int(code) for code in columns(table, 0) if code.isdecimal()] == sorted(codes)


def test_postfix_page_shows_the_statistics_as_logged() -> None:
    """Only the process id and the time differ."""
    (shown,) = blocks(PAGES["postfix"], "text")
    statistics = Statistics(Clock())
    statistics.domain_hits, statistics.domain_misses = 86, 34
    statistics.address_hits, statistics.address_misses = 3, 31
    for number in range(31):
        statistics.connection_added(b"%d" % (number % 2), 1)
    statistics.bindings_added(b"one", 3)
    statistics.bindings_added(b"two", 3)
    statistics.saved()
    begin, *lines = [line.removeprefix("scache[4711]: ") for line in shown.text.splitlines()]
    began, *logged = statistics.report()
    assert lines == logged
    assert re.sub(r"\w{3} [ \d]\d [\d:]{8}$", "", begin) == began[: -len("Nov 27 10:03:31")]


def test_architecture_page_is_short_and_explains_its_words_in_order() -> None:
    """At most 100 lines, with a glossary of some 25 words, in alphabetical order."""
    _, glossary = PAGES["architecture"].split("## Glossary")
    assert PAGES["architecture"].count("\n") <= 100
    words = [word for word in columns(glossary, 0) if word != "word"]
    assert words == sorted(words)
    assert 20 <= len(words) <= 30


def test_architecture_page_has_every_package() -> None:
    """Each directory of the package that holds code has a row."""
    named = set(re.findall(r"`scache/(\w+)`", PAGES["architecture"]))
    assert named == {each.parent.name for each in PACKAGE.glob("*/__init__.py")}


def test_architecture_page_names_files_that_exist() -> None:
    """Each file in the table of common changes has the names beside it."""
    paths = re.findall(r"(?<![\w/])((?:[a-z_]+/)+(?:\w+\.py)?)", PAGES["architecture"])
    assert "cache/connections.py" in paths
    for path in paths:
        assert any((root / path).exists() for root in (PACKAGE, PACKAGE.parent)), path
    for path, name in PLACES:
        assert path in paths
        assert f"`{name}`" in PAGES["architecture"]
        assert re.search(rf"\b{name}\b", (PACKAGE / path).read_text(encoding="utf-8"))
