"""The prompt of ``scache sql``: statements are executed one after another on one image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, WordCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from scache.cli.failures import explained
from scache.cli.interrupts import Interrupts, terminal_restored
from scache.cli.option_types import bytes_of
from scache.cli.render.formats import Format
from scache.cli.statements import execute
from scache.cli.streams import OutputError, echo
from scache.cli.target import Target
from scache.errors import QueryError, ScacheError, reason_of
from scache.escape import one_line
from scache.inspection.image import Image, Value
from scache.inspection.sql_text import is_complete
from scache.settings.loading import did_you_mean

HELP = """\
A statement ends with a semicolon and may have many lines. It works on a private copy
of the cache: nothing that it does reaches the cache itself.
  .tables         list the tables and views, with their columns
  .schema [NAME]  show the SQL that made them, or one of them
  .refresh        take a new copy of the cache as it is now
  .help           show this text
  .quit           leave the prompt; Ctrl-D does the same
The words help, exit and quit work without the point, too.
Tab completes names and SQL; the arrow keys bring back earlier statements."""

COMMANDS = (".tables", ".schema", ".refresh", ".help", ".quit")

WORDS = {"help": ".help", "exit": ".quit", "quit": ".quit", ".exit": ".quit"}
"""Other words for commands."""

SQL = """
    ALL AND AS ASC AVG BETWEEN BY CASE CAST COUNT CREATE CROSS DELETE DESC DISTINCT DROP ELSE END
    EXCEPT EXISTS EXPLAIN FROM FULL GLOB GROUP GROUP_CONCAT HAVING IN INNER INSERT INTERSECT INTO
    IS JOIN LEFT LENGTH LIKE LIMIT MAX MIN NOT NULL OFFSET ON OR ORDER OVER PARTITION PLAN QUERY
    ROUND ROW_NUMBER SELECT SET STRFTIME SUM TABLE THEN UNION UPDATE USING VALUES VIEW WHEN WHERE
    WINDOW WITH
"""
"""Words that Tab completes, besides the names of tables, views and columns."""

PROMPT = "scache> "
CONTINUATION = "   ...> "


def run_prompt(
    target: Target,
    layout: Format,
    parameters: Mapping[str, Value | str],
    *,
    all_columns: bool = False,
) -> None:
    """Execute statements as they are typed, until Ctrl-D; an error is one line.

    Ctrl-C drops the line that is being typed, or interrupts a statement. While an image is taken,
    it ends the process, as in every other command.
    """

    def run(image: Image, text: str) -> None:
        execute(image, text, layout, parameters, all_columns=all_columns)

    image = target.image()
    with Interrupts() as interrupts:
        try:
            image.stop_if(interrupts.came)
            echo(f"A copy of the {one_line(str(target))}, as it is now. Type .help for help.")
            session = make_session()
            while True:
                # Not right before the statement: Ctrl-C may come as soon as Enter was typed.
                interrupts.clear()
                text = _typed(session, image)
                if text is None or as_command(text) == ".quit":
                    break
                image = _answer(text, image, run, target, interrupts)
        finally:
            image.close()


def _typed(session: PromptSession[str], image: Image) -> str | None:
    """Return what was typed: empty text after Ctrl-C, and None after Ctrl-D."""
    try:
        with terminal_restored():
            text = session.prompt(PROMPT, completer=_completer(image))
            # Bytes that the encoding of the terminal lacks are surrogates.
            return bytes_of(text).decode(errors="surrogateescape").strip()
    except KeyboardInterrupt:
        return ""
    except EOFError:
        return None
    finally:
        if isinstance(session.history, StatementHistory):
            session.history.say_problem()


def _answer(
    text: str,
    image: Image,
    run: Callable[[Image, str], None],
    target: Target,
    interrupts: Interrupts,
) -> Image:
    """Execute a command or statements, by ``run``; return the image for the next one.

    An exception becomes one line.
    """
    try:
        match as_command(text) or text:
            case ".refresh":
                with interrupts.ending():
                    fresh = target.image()
                image.close()
                fresh.stop_if(interrupts.came)
                return fresh
            case command if command.startswith("."):
                _run_command(image, command)
            case _:
                run(image, text)
    except KeyboardInterrupt:
        pass
    except OutputError:  # the terminal is gone
        raise
    except Exception as error:  # noqa: BLE001 - the session goes on after every other error
        echo(one_line(explained(error)[0]), err=True)
    return image


def make_session() -> PromptSession[str]:
    """Return a prompt that reads lines until a statement is complete, and keeps a history."""
    return PromptSession(
        history=_history(),
        multiline=Condition(lambda: not is_whole(get_app().current_buffer.text)),
        prompt_continuation=CONTINUATION,
        complete_while_typing=False,
    )


def is_whole(text: str) -> bool:
    """Return True if Enter ends the input: it is a complete statement, a command, or empty."""
    text = text.strip()
    return not text or as_command(text) is not None or is_complete(text)


def as_command(text: str) -> str | None:
    """Return the command that a text stands for; None if it is SQL."""
    command = text.rstrip("; ").lower() if text[:1] != "." else text.rstrip("; ")
    command = WORDS.get(command, command)
    return command if command.startswith(".") else None


def _run_command(image: Image, command: str) -> None:
    match command.split():
        case [".help"]:
            echo(HELP)
        case [".tables"]:
            for relation in image.relations():
                echo(one_line(f"{relation.name}({', '.join(relation.columns)})"))
        case [".schema"]:
            for relation in image.relations():
                _show_schema(image, relation.name)
        case [".schema", name]:
            known = [relation.name for relation in image.relations()]
            if name not in known:
                raise QueryError(f"there is no table or view {name}{did_you_mean(name, known)}")
            _show_schema(image, name)
        case [name, *_]:
            hint = did_you_mean(name, COMMANDS) or ": .help lists the commands"
            echo(one_line(f"there is no command {command}{hint}"))


def _show_schema(image: Image, name: str) -> None:
    echo("\n".join(map(one_line, f"{image.schema_of(name)};".splitlines())))


class SqlCompleter(Completer):
    """Completion of commands, and in statements of the names in an image and the words of SQL."""

    def __init__(self, image: Image) -> None:
        relations = image.relations()
        words = dict.fromkeys(relation.name for relation in relations)
        words |= dict.fromkeys(column for relation in relations for column in relation.columns)
        words |= dict.fromkeys(SQL.split())
        self._words = WordCompleter(list(words), ignore_case=True)
        self._commands = WordCompleter(COMMANDS, sentence=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """Return completions of the text before the cursor."""
        is_command = document.text_before_cursor.startswith(".")
        completer = self._commands if is_command else self._words
        return completer.get_completions(document, event)


def _completer(image: Image) -> Completer | None:
    """Return the completer; None if a statement has damaged the image, or without memory."""
    try:
        return SqlCompleter(image)
    except (ScacheError, MemoryError):
        return None


class StatementHistory(FileHistory):
    """A history in a file, which goes on in memory once the file cannot be read or written."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._problem: OSError | None = None
        self._said = False

    def load_history_strings(self) -> Iterable[str]:
        """Return the earlier statements, the latest first."""
        try:
            return list(super().load_history_strings())
        except OSError as error:
            self._problem = error
            return ()

    def store_string(self, string: str) -> None:
        """Append a statement to the file."""
        if self._problem is None:
            try:
                super().store_string(bytes_of(string).decode(errors="replace"))
            except OSError as error:
                self._problem = error

    def say_problem(self) -> None:
        """Say once that the file cannot be used. It must not be said while a line is edited."""
        if self._problem is not None and not self._said:
            self._said = True
            _say_in_memory(str(self.filename), reason_of(self._problem))


def _history() -> History:
    """Return the history, kept in a file if possible (XDG base directories), else in memory."""
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    except RuntimeError:  # this user has no home
        return InMemoryHistory()
    file = base / "scache" / "sql-history"
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
        problem = None if file.is_file() else "it is no regular file"
    except OSError as error:
        problem = reason_of(error)
    if problem is None:
        return StatementHistory(file)
    _say_in_memory(str(file), problem)
    return InMemoryHistory()


def _say_in_memory(file: str, problem: str | None) -> None:
    echo(one_line(f"the history ends with this session: cannot use {file}: {problem}"), err=True)
