"""What a person sees while a scenario runs."""

from __future__ import annotations

import io

from integration.lab.boots import Event
from integration.lab.terminal import Live


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def screen(self) -> list[str]:
        """Return the lines that stand there, without colours."""
        lines = []
        for line in self.getvalue().split("\n"):
            shown = line.rpartition("\r\x1b[K")[2]
            for code in ("\x1b[2m", "\x1b[36m", "\x1b[0m"):
                shown = shown.replace(code, "")
            lines.append(shown)
        return lines


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


KERNEL = Event(12.3, 1, "kernel", "slot b boots release 2.0.0")


def test_the_consoles_last_line_stands_below_the_events() -> None:
    out = Terminal()
    live = Live(out, clock=Clock())
    live.show(b"Linux ver")
    live.show(b"sion 6\r\n\r\n\x1b[0;32m  OK\x1b[0m")
    live.tell(KERNEL)
    assert out.screen == ["  0:12.3  boot 1   kernel     slot b boots release 2.0.0", "  │ OK"]
    live.close()
    assert out.screen[-1] == ""


def test_a_new_boot_has_no_line_of_the_old_one() -> None:
    out = Terminal()
    live = Live(out, clock=Clock())
    live.show(b"reboot: Restarting system\r\n")
    live.tell(Event(20.0, 1, "boot", "boot 1 ended after 20 s: healthy"))
    assert out.screen[-1] == ""


def test_what_is_no_terminal_gets_the_events_alone() -> None:
    out = io.StringIO()
    live = Live(out)
    live.show(b"Linux version 6\r\n")
    live.tell(KERNEL)
    live.close()
    assert out.getvalue() == "  0:12.3  boot 1   kernel     slot b boots release 2.0.0\n"
