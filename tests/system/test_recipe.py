"""The recipe of the manual for Postfix, run as it is printed."""

from __future__ import annotations

import json
import re
import shlex
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import scache
from scache.cli.commands.unit import service_unit
from tests.support.commands import SCACHE, run_command, started
from tests.support.daemon import DaemonProcess
from tests.support.manual import DOCUMENTS, PAGES, README, ROOT, blocks, section
from tests.support.postfix_setup import MAIL_OWNER
from tests.support.private_postfix import PrivatePostfix

MESSAGES = 60
SESSIONS = 4

PAGE = PAGES["postfix"]
SERVE, SERVICE, SWITCH, LOOK, BACK = (
    block.text.replace("\\\n", " ").strip() for block in blocks(PAGE, "sh")
)
COMPLAINT = re.compile(r": (warning|error|fatal|panic): |disabling connection caching")


def words(command: str) -> list[str]:
    """Return the words of a command that is printed in several lines."""
    return shlex.split(command.replace("\\\n", " "))


def test_unit_starts_the_daemon_as_the_recipe_does() -> None:
    """Both serve the same socket with the same options; systemd sets the user of the unit."""
    (*_, socket_path), (*_, user) = (
        SERVE.partition(f" {name} ") for name in ("--socket", "--user")
    )
    private = Path(socket_path.split()[0]).parent
    unit = service_unit(Path("/opt/scache/bin/scache"), private / "scache-sql", private)
    (command,) = re.findall(r"^ExecStart=((?:.*\\\n)*.*)$", unit, re.MULTILINE)
    assert f"\nUser={user.split()[0]}\n" in unit
    assert options(words(command)) == options(words(SERVE)) | {"--database": "%S/scache/cache.db"}


def options(command: list[str]) -> dict[str, str]:
    """Return the options of ``scache serve``, without ``--user``."""
    assert command[1] == "serve"
    given = dict(zip(command[2::2], command[3::2], strict=True))
    given.pop("--user", None)
    return given


def test_commands_for_systemd_are_those_of_its_page() -> None:
    """The commands of that page run in a test."""
    assert blocks(PAGES["systemd"], "sh")[1].text.strip() == SERVICE


HELP = ROOT.joinpath("scache", "cli", "commands", "serve.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["help", *DOCUMENTS])
def test_every_example_for_postfix_is_that_of_the_recipe(name: str) -> None:
    """Each document has the same command, and no other socket in Postfix's directory."""
    text = HELP.replace("\\\\\n", "\\\n") if name == "help" else DOCUMENTS[name]
    (_, socket), *_ = re.findall(r"(--socket) (\S+)", SERVE)
    of_master = {str(Path(socket).parent / "scache")} if name == "master" else set()
    assert set(re.findall(r"/\S+/private/[^\s`]+", text)) <= {socket} | of_master
    served = re.findall(r"\S*scache serve (?:.*\\\n)*.*", text)
    of_postfix = [words(command)[1:] for command in served if "postfix" in command]
    assert bool(of_postfix) == (name in ("help", "README", "postfix"))
    assert all(arguments == words(SERVE)[1:] for arguments in of_postfix)


def test_readme_has_the_recipe() -> None:
    """The commands are those of the page, word for word."""
    serve, switch = blocks(section(README, "With Postfix"), "sh")
    assert words(serve.text) == words(SERVE)
    assert switch.text.strip() == SWITCH
    assert f"`{BACK.splitlines()[0]}`" in README


class Administrator:
    """An administrator, who runs the recipe on a private Postfix and checks the result."""

    def __init__(self, postfix: PrivatePostfix) -> None:
        self._postfix = postfix
        self._reloads = 0
        serve = self.here(SERVE)
        self.socket = Path(serve[serve.index("--socket") + 1])

    def here(self, command: str) -> list[str]:
        """Return the words of a command for this Postfix, in place of the machine's own."""
        for own, ours in (
            ("/var/spool/postfix", self._postfix.queue_directory),
            ("/var/lib/postfix", self._postfix.data_directory),
        ):
            command = command.replace(own, str(ours))
        return shlex.split(command)

    def scache(self, command: str) -> list[str]:
        """Return the words of a command of scache, with the program under test."""
        program, *arguments = self.here(command)
        assert program == "scache"
        return [*SCACHE, *arguments]

    def reload(self, commands: str) -> str:
        """Run commands of Postfix that include a reload; wait until it is done."""
        said = self._postfix.run(commands)
        self._reloads += 1
        self._postfix.wait_reloaded(self._reloads)
        return said

    def check(self) -> list[str]:
        """Run ``postfix check``; return its output, and the complaints in the log of Postfix."""
        said = self._postfix.run("postfix check").splitlines()
        return [*said, *(line for line in self._postfix.log() if COMPLAINT.search(line))]

    def deliver(self) -> int:
        """Send mail; return the number of reused connections in the log of smtp(8)."""
        before = self._postfix.deliveries()
        self._postfix.send(MESSAGES, SESSIONS)
        self._postfix.wait_delivered(len(before) + MESSAGES)
        sent = self._postfix.deliveries()[len(before) :]
        assert all("status=sent" in delivery for delivery in sent)
        return sum("conn_use=" in delivery for delivery in sent)

    def is_given_up(self) -> bool:
        """Return True if a connection is closed when its server sends 421."""
        ours, servers = socket.socketpair()
        with scache.Client(self.socket) as cache, ours, servers:
            assert cache.save_endp(60, "mx.example", "", ours)
            servers.sendall(b"421 4.4.2 Error: timeout exceeded\r\n")
            if (found := cache.find_endp("mx.example")) is None:
                return True
            found.close()
            return False

    def found(self) -> int:
        """Return the number of connections that clients of the daemon found."""
        stats = run_command(*(*SCACHE, "stats", "--format", "json", "--socket", str(self.socket)))
        assert stats.stderr == ""
        return int(json.loads(stats.stdout)["ways_out"]["found"])


@pytest.mark.postfix
@pytest.mark.slow
@pytest.mark.parametrize("with_scache", [True, False], ids=["as installed", "without scache(8)"])
def test_recipe_works_and_survives_an_upgrade_of_postfix(with_scache: bool) -> None:
    """Connections are reused through the daemon until the way back; `postfix check` is silent.

    `postfix upgrade-configuration` adds Postfix's scache(8) to a master.cf without it; the socket
    of this daemon stays.
    """
    with PrivatePostfix(with_scache=with_scache) as postfix:
        administrator = Administrator(postfix)
        with DaemonProcess(administrator.scache(SERVE)) as daemon:
            assert administrator.reload(SWITCH) == ""
            assert administrator.deliver() == administrator.found() > 0
            with started(*administrator.scache(LOOK)) as look, ThreadPoolExecutor() as pool:
                assert look.stdout is not None
                events = map(json.loads, look.stdout)
                shown = pool.submit(lambda: any(event["kind"] == "found" for event in events))
                while not shown.done():
                    administrator.deliver()
                assert shown.result()
            assert administrator.is_given_up()
            assert {path.owner() for path in postfix.data_directory.iterdir()} == {MAIL_OWNER}
            assert administrator.check() == []

            upgraded = administrator.reload("postfix upgrade-configuration; postfix reload")
            assert ("adding missing entry for scache service" in upgraded) != with_scache
            assert administrator.check() == []
            before = administrator.found()
            assert administrator.deliver() == administrator.found() - before > 0

            assert administrator.reload(BACK) == ""
            assert daemon.terminate() == 0
        assert not administrator.socket.exists()
        assert administrator.deliver() > 0
        assert postfix.run("postconf -n connection_cache_service_name") == ""
        assert administrator.check() == []
