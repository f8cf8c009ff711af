"""edl completion: the script that lets a shell complete commands, options, and names of jobs and nodes."""

import click
from click.shell_completion import get_completion_class

#: `edl` asks itself through this variable, in the process that the script starts
VARIABLE = "_EDL_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes `edl` in a shell.

    \b
    bash:  echo 'eval "$(edl completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(edl completion zsh)"' >> ~/.zshrc
    fish:  edl completion fish > ~/.config/fish/completions/edl.fish

    Names of jobs and nodes come from the JobServer of --server, or of EDL_SERVER; where none answers within a second,
    none are offered.
    """
    found = get_completion_class(shell)
    assert found is not None, "click knows the shells of the choice"
    click.echo(found(context.find_root().command, {}, "edl", VARIABLE).source())
