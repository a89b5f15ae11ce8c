# SPDX-License-Identifier: Apache-2.0
"""The command map."""

from __future__ import annotations

from nsrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.cli.commands import Call
    from nsrun.teach.map.model import Map


def show(call: Call) -> int:
    from nsrun.cli import say
    from nsrun.teach.map.gather import gather

    form = call.options.get("format", "text")
    if "serve" in call.options:
        return _serve(call)
    if call.options.get("watch"):
        return _watch(call, form)
    shown = gather(call.state, call.operands)
    (say.page if form == "text" else say.script)(_drawn(shown, form))
    return 0


def _watch(call: Call, form: str) -> int:
    from nsrun.cli import say
    from nsrun.teach.map.watch import maps

    if form not in ("text", "json"):
        raise UsageError(
            f"--watch draws text or json, not {form}", hint="--serve 127.0.0.1:0 shows it live in a browser"
        )
    for shown in maps(call.state, call.operands):
        if form == "text":
            say.screen(_drawn(shown, form), say.size()[1])
        else:
            say.script(_drawn(shown, "lines"))
            say.flush()
    return 0


def _serve(call: Call) -> int:
    from nsrun.cli import say
    from nsrun.teach.map.serve import Board, Server, parse_address
    from nsrun.teach.map.watch import maps

    address = parse_address(call.options["serve"])
    if other := {"watch", "format"} & call.options.keys():
        raise UsageError(f"--serve does not go with --{min(other)}", hint="the page that it serves is always live")
    board = Board()
    server = None
    for shown in maps(call.state, call.operands):
        board.publish(shown)
        if server is None:
            server = Server(*address, board)
            server.start()
            say.out(server.url)
            say.flush()
    return 0


def _drawn(shown: Map, form: str) -> str:
    if form in ("json", "lines"):
        import json

        from nsrun.teach.map.model import plain

        return json.dumps(plain(shown), indent=2 if form == "json" else None).replace("\x7f", "\\u007f") + "\n"
    if form == "text":
        from nsrun.cli import say
        from nsrun.teach.map import text

        return text.draw(shown, say.size()[0], ascii=not say.can_be_written("".join(text.LEGEND)))
    if form == "dot":
        from nsrun.teach.map import dot

        return dot.draw(shown)
    if form == "svg":
        from nsrun.teach.map import svg

        return svg.draw(shown)
    from nsrun.teach.map import html

    return html.page(shown)
