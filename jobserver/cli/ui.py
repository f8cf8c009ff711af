"""edl ui: the way to the page of the JobServer."""

import webbrowser

import click

from jobserver.cli.client import Api, CommandFailed, print_json, with_api


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
    if open_it and not webbrowser.open(address):
        raise CommandFailed("there is no browser on this machine: open the address on another one")
