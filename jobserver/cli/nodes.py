"""edl nodes, drain, undrain, cordon, uncordon: one request each."""

from collections.abc import Mapping
from typing import Any

import click

from jobserver.cli.client import Api, print_json, print_table, tell, with_api
from jobserver.cli.names import NODE

_node = click.argument("node", type=NODE)
_absent = click.option("--absent", is_flag=True, help="accept a NODE that is not there and that no job knows")


@click.command()
@with_api
def nodes(api: Api, as_json: bool) -> None:
    """List the nodes and their workers."""
    answer = api.get("/nodes")
    if as_json:
        print_json(answer)
        return
    rows: list[tuple[object, ...]] = [
        (
            node["node"],
            node["address"],
            f"{len(node['workers'])}/{node['slots']}",
            ",".join(map(str, node["gpus"])) or "cpu",
            "draining" if node["draining"] else "cordoned" if node["cordoned"] else "ready",
            ",".join(f"{name}={value}" for name, value in sorted(node["labels"].items())),
            " ".join(f"{w['job']}:{w['worker']}{' (spare)' if w['spare'] else ''}" for w in node["workers"]),
        )
        for node in answer["nodes"]
    ]
    print_table(("NODE", "ADDRESS", "SLOTS", "GPUS", "STATE", "LABELS", "WORKERS"), rows)


@click.command()
@_node
@click.option(
    "--deadline",
    type=float,
    default=None,
    help="seconds until those that have not left are stopped (default: each job's leave_timeout_s)",
)
@_absent
@with_api
def drain(api: Api, as_json: bool, node: str, deadline: float | None, absent: bool) -> None:
    """Let all workers leave NODE at a step boundary.

    Jobs go on elsewhere and lose no step. The node stays registered and takes no workers until `edl undrain NODE`, also
    when it is away meanwhile.
    """
    within: dict[str, object] = {} if deadline is None else {"deadline_s": deadline}
    answer = api.post(f"/nodes/{node}/drain", within | _said(absent))
    sentence = f"node {node} drains" + ("" if deadline is None else f", within {deadline:g} s")
    tell(answer, as_json, sentence + _away(answer, node))


@click.command()
@_node
@with_api
def undrain(api: Api, as_json: bool, node: str) -> None:
    """Let a drained NODE take workers again."""
    tell(api.post(f"/nodes/{node}/undrain"), as_json, f"node {node} takes workers again")


@click.command()
@_node
@_absent
@with_api
def cordon(api: Api, as_json: bool, node: str, absent: bool) -> None:
    """Let NODE take no new workers; those that it has go on there.

    For a machine that is to become empty by itself, or that is not trusted any more: `edl drain NODE` empties it now.
    It holds until `edl uncordon NODE`, also when the node is away meanwhile.
    """
    answer = api.post(f"/nodes/{node}/cordon", _said(absent))
    tell(answer, as_json, f"node {node} takes no new workers" + _away(answer, node))


@click.command()
@_node
@with_api
def uncordon(api: Api, as_json: bool, node: str) -> None:
    """Let a cordoned NODE take workers again."""
    tell(api.post(f"/nodes/{node}/uncordon"), as_json, f"node {node} takes workers again")


def _said(absent: bool) -> dict[str, object]:
    return {"absent": True} if absent else {}


def _away(answer: Mapping[str, Any], node: str) -> str:
    return "" if answer["there"] else f"\nnode {node} is not there now: it takes no workers when it comes"
