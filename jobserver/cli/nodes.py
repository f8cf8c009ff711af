"""edl nodes, drain, undrain, cordon, uncordon: one request each."""

import click

from jobserver.cli.client import Api, print_json, print_table, with_api
from jobserver.cli.names import NODE


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
@click.argument("node", type=NODE)
@click.option(
    "--deadline",
    type=float,
    default=None,
    help="seconds until those that have not left are stopped (default: each job's leave_timeout_s)",
)
@click.option("--absent", is_flag=True, help="accept a NODE that is not there and that no job knows")
@with_api
def drain(api: Api, as_json: bool, node: str, deadline: float | None, absent: bool) -> None:
    """Let all workers leave NODE at a step boundary.

    Jobs go on elsewhere and lose no step. The node stays registered and takes no workers until `edl undrain NODE`, also
    when it is away meanwhile.
    """
    body: dict[str, object] = {} if deadline is None else {"deadline_s": deadline}
    answer = api.post(f"/nodes/{node}/drain", {**body, "absent": True} if absent else body)
    if as_json:
        print_json(answer)
        return
    click.echo(f"node {node} drains" + ("" if deadline is None else f", within {deadline:g} s"))
    if not answer["there"]:
        click.echo(f"node {node} is not there now: it takes no workers when it comes")


@click.command()
@click.argument("node", type=NODE)
@with_api
def undrain(api: Api, as_json: bool, node: str) -> None:
    """Let a drained NODE take workers again."""
    answer = api.post(f"/nodes/{node}/undrain")
    if as_json:
        print_json(answer)
    else:
        click.echo(f"node {node} takes workers again")


@click.command()
@click.argument("node", type=NODE)
@click.option("--absent", is_flag=True, help="accept a NODE that is not there and that no job knows")
@with_api
def cordon(api: Api, as_json: bool, node: str, absent: bool) -> None:
    """Let NODE take no new workers; those that it has go on there.

    For a machine that is to become empty by itself, or that is not trusted any more: `edl drain NODE` empties it now.
    It holds until `edl uncordon NODE`, also when the node is away meanwhile.
    """
    answer = api.post(f"/nodes/{node}/cordon", {"absent": True} if absent else {})
    if as_json:
        print_json(answer)
        return
    click.echo(f"node {node} takes no new workers")
    if not answer["there"]:
        click.echo(f"node {node} is not there now: it takes no workers when it comes")


@click.command()
@click.argument("node", type=NODE)
@with_api
def uncordon(api: Api, as_json: bool, node: str) -> None:
    """Let a cordoned NODE take workers again."""
    answer = api.post(f"/nodes/{node}/uncordon")
    if as_json:
        print_json(answer)
    else:
        click.echo(f"node {node} takes workers again")
