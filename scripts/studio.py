"""Everything from a file to a published adapter on a page in the browser: a front for the other commands.

python scripts/studio.py
python scripts/studio.py --root data --port 8600 --language en
python scripts/studio.py --host 0.0.0.0 --auth user:password
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

from importlib.util import find_spec

from hf_recipes.apps.ports import check_port
from hf_recipes.apps.studio.arguments import StudioArguments
from hf_recipes.command.flags import flags_of
from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import UserError
from hf_recipes.core.script import run_script


def main() -> None:
    [arguments] = Parser([StudioArguments]).parse()
    if find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install -e '.[chat]'")
    check_port(arguments.port, arguments.host)
    from hf_recipes.apps.studio.page import Page
    from hf_recipes.apps.studio.server import serve

    serve(Page(arguments, flags_of), port=arguments.port, host=arguments.host, auth=arguments.auth, max_waiting=100)


if __name__ == "__main__":
    run_script(main, "the runs that were begun run on")
