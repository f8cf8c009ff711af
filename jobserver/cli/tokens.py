"""edl token and edl certificate: what the cluster key gives to those who are not to have the key itself."""

import click

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.errors import CoordError
from edl_collective.coord.key_file import load_key
from jobserver.cli.client import BadInput, key_path

_key_file = click.option(
    "--key-file", envvar="EDL_KEY_FILE", default=None, help="the cluster key (default: ~/.edl/key)"
)


@click.command()
@click.option("--read-only", is_flag=True, help="one that shows everything but values of --env, and changes nothing")
@_key_file
def token(read_only: bool, key_file: str | None) -> None:
    """Print a token for EDL_TOKEN, or for 'Authorization: Bearer TOKEN'.

    Without --read-only whoever has it can submit jobs, and so run what he likes on every node.
    """
    key = _load(key_file)
    click.echo(key.read_only_token if read_only else key.api_token)


@click.command()
@_key_file
def certificate(key_file: str | None) -> None:
    """Print the certificate authority of the cluster (PEM), for browsers, or for EDL_TLS_CA of who has no key."""
    from edl_collective.coord.tls import authority_pem

    click.echo(authority_pem(_load(key_file)), nl=False)


def _load(key_file: str | None) -> ClusterKey:
    try:
        return load_key(key_path(key_file))
    except CoordError as error:
        raise BadInput(str(error)) from error
