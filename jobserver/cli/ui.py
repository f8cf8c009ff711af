"""edl ui: the way to the page of the JobServer.

Invariant: the address, which holds the token, stands in no command line, which other users could read.
"""

import html
import os
import webbrowser
from pathlib import Path

import click

from jobserver.cli.client import Api, CommandFailed, print_json, with_api

#: beside the key of the cluster's users, and as private
DOOR = Path("~/.edl/page.html")


@click.command()
@click.option("--open", "open_it", is_flag=True, help="open it in the browser of this machine, too")
@with_api
def ui(api: Api, as_json: bool, open_it: bool) -> None:
    """Print the address of the page that shows the cluster live.

    The address holds the token after its #, a part that browsers send to nobody; the page keeps it for its tab only and
    takes it out of the address. Whoever is given the address may do what you may.
    """
    api.get("/health")
    address = api.page_address()
    if as_json:
        print_json({"url": address})
    else:
        click.echo(address)
    if open_it and not webbrowser.open(_door(address).as_uri()):
        raise CommandFailed("there is no browser on this machine: open the address on another one")


def _door(address: str) -> Path:
    """A file that nobody else can read and that leads a browser to `address`."""
    path = DOOR.expanduser()
    text = f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(address)}"><title>EDL</title>\n'
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # whatever its mode was
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise CommandFailed(f"{path} cannot be written: {error.strerror}; open the address by hand") from error
    return path
