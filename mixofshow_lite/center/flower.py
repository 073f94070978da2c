"""Mix-of-Show over a network, with Flower (paper 3.2, Fig. 1): clients tune in private, the center node fuses once.

    record      from -> to          holds
    "task"      center -> client    the base's id and fingerprint, the recipe's name, a seed, a number of steps
    "tensors"   client -> center    the arrays of concept.safetensors: rows of the words, low-rank factors
    "concept"   client -> center    the text of concept.json: name, words, class word, recipe, base

Pictures, masks, captions and losses stay where they are. So does the text of a client's errors, which may quote a
caption or a file: the center hears their kind alone, the sentence is in the client's own log.

Flower wants an environment of its own: `pip install "mixofshow_lite[flower]"`. There, a folder with this pyproject.toml
is the app; give whole paths in it, as Flower's processes work in folders of their own:

    [project]
    name = "one-round"
    version = "1.0.0"
    [tool.flwr.app]
    publisher = "us"
    [tool.flwr.app.components]
    serverapp = "mixofshow_lite.center.flower:server_app"
    clientapp = "mixofshow_lite.center.flower:client_app"
    [tool.flwr.app.config]
    base = "pocket"      # as load_base takes it
    recipe = "ed_lora"
    seed = 0
    steps = 0            # 0: as many as the recipe has
    clients = 2          # wait up to a minute for so many
    timeout = 3600       # seconds they have to answer
    output = ""          # a new folder at the center: center/ for CenterNode.load, fused/ for load_base
    pictures = ""        # simulation only: a folder that holds one folder of pictures per client

Simulation on one machine, with `pip install "flwr[simulation]"`: `flwr federation simulation-config --num-supernodes 2`
and `flwr run . --stream`. On several: `flower-superlink` at the center, at every client `flower-supernode --superlink
ADDRESS --node-config 'pictures="..." class-word="rabbit" name="bibi"'`, then `flwr run . NAME`, the superlink's name in
Flower's config.toml. A node-config may give a `base` of its own, the same model at another place. A superlink started
with `--disable-runtime-dependency-installation` stays in its environment.
"""

import json
import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save_file

from ..engine.tuning import recipe_for, tune
from ..files.concept import Concept, is_word, tensors_of
from ..files.data import ConceptData
from ..model import DiffusionModel, load_base
from .node import CenterNode

try:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import Strategy
except ImportError as error:
    raise ImportError('The Flower app needs a recent Flower: pip install "mixofshow_lite[flower]".') from error

LOG = logging.getLogger("flwr")  # Flower's own, so that its commands show what is said here
FAILED = 2  # Flower's error code of a ClientApp that raised
WAIT = 60  # seconds for clients to connect
client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """A client's whole part: tune on its own pictures and answer with the Concept, or with the kind of its error."""
    try:
        content = packed(tune_here(message.content["task"], context))
    except Exception as error:  # all of them: Flower would send what is raised here to the center, with its text
        LOG.exception("This client tuned nothing: %s", error)
        reason = f"it tuned nothing ({type(error).__name__}), its own log says why."
        return Message(Error(FAILED, reason), reply_to=message)
    return Message(content, reply_to=message)


def tune_here(task: ConfigRecord, context: Context) -> Concept:
    """Tune as the center asks, on this client's base and pictures; raises ValueError if the base is another one."""
    own = context.node_config
    base = load_base(own.get("base") or context.run_config.get("base") or "pocket")
    if base.fingerprint != task["fingerprint"]:
        raise ValueError(
            f"The center fuses on {task['base_id']} ({task['fingerprint']}), the base here is {base.base_id} "
            f"({base.fingerprint}): give the center's in --node-config 'base=\"...\"'."
        )
    data = ConceptData(pictures_of(context), own.get("class-word"))
    options = {"recipe": task["recipe"], "seed": task["seed"], "steps": task["steps"] or None}
    return tune(base, data, name=own.get("name"), progress=False, **options)


def pictures_of(context: Context) -> Path:
    """The client's own folder, or in a simulation its share of the common one; raises ValueError if there is none."""
    own, common = context.node_config.get("pictures"), context.run_config.get("pictures")
    part = context.node_config.get("partition-id")  # a simulation numbers its clients
    if own:
        return Path(own)
    if not common or part is None:
        raise ValueError("This client has no pictures: start it with --node-config 'pictures=\"folder\"'.")
    folders = sorted(p for p in Path(common).iterdir() if p.is_dir() and not p.name.startswith("."))
    if part >= len(folders):
        raise ValueError(f"{common} has {len(folders)} folders, too few for client {part}: simulate fewer clients.")
    return folders[part]


def packed(concept: Concept) -> RecordDict:
    """A Concept as what its folder holds, without the preview and the card: all that ever leaves a client."""
    with TemporaryDirectory() as folder:
        saved = replace(concept, preview=None).save(Path(folder) / "concept")
        about = (saved / "concept.json").read_text(encoding="utf-8")
    tensors = {name: tensor.detach().cpu().float() for name, tensor in tensors_of(concept).items()}
    return RecordDict({"tensors": ArrayRecord(tensors), "concept": ConfigRecord({"concept.json": about})})


def unpacked(content: RecordDict, base: DiffusionModel) -> Concept:
    """The Concept of a client's answer, checked against the base; raises ValueError with one sentence."""
    with TemporaryDirectory() as folder:
        try:
            tensors = content["tensors"].to_torch_state_dict()
            about = json.loads(content["concept"]["concept.json"])
            save_file({k: t.float().contiguous() for k, t in tensors.items()}, Path(folder) / "concept.safetensors")
            (Path(folder) / "concept.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
        except Exception as error:  # there are many ways to be no concept
            kind = type(error).__name__
            raise ValueError(f"its answer cannot be read as a concept ({kind}): let it run this app.") from error
        try:
            concept = Concept.load(folder)
        except (ValueError, OSError) as error:
            raise ValueError(str(error).replace(folder, "its answer")) from error
    check_answer(concept, base)
    return concept


def check_answer(concept: Concept, base: DiffusionModel) -> None:
    """What a file from a friend may leave open but an answer may not; raises ValueError with one sentence."""
    if concept.fingerprint != base.fingerprint:
        what = f"was tuned on {concept.base_id} ({concept.fingerprint})"
        if not concept.fingerprint:
            what = "does not say what it was tuned on"
        raise ValueError(
            f"{concept.name!r} {what}, the center fuses on {base.base_id} ({base.fingerprint}): tune it there."
        )
    strange = next((word for word in concept.words if not is_word(word)), None)
    if strange is not None:
        raise ValueError(f"{strange!r} of {concept.name!r} is no concept word: write it like <bibi1>.")
    if not abs(concept.scale) < 100:  # nor NaN; 1 is usual
        raise ValueError(f"The scale of {concept.name!r} is no usable number: tune it again.")
    concept.check(base)


class CenterStrategy(Strategy):
    """The center node's part: ask every client once, check what comes, fuse it and write it to `output`.

    `steps` 0 is the recipe's own number, `clients` how many to wait for, `fusion` the settings of `gradient_fusion`.
    The round goes on without clients that cannot be used; `left_out` says why. Afterwards `center` is the node and
    `fused` the model. Raises FileExistsError or ValueError with one sentence.
    """

    def __init__(
        self,
        base: DiffusionModel,
        output: str | Path,
        recipe: str = "ed_lora",
        seed: int = 0,
        steps: int = 0,
        clients: int = 1,
        fusion: dict | None = None,
    ):
        self.base, self.output, self.clients = base, Path(output), clients
        if self.output.exists() and (self.output.is_file() or any(self.output.iterdir())):
            raise FileExistsError(f"{output} holds something already: choose another folder for the result.")
        if steps < 0:
            raise ValueError(f"steps={steps}: tune for at least one step, or say 0 for the recipe's own number.")
        self.task = {"base_id": base.base_id, "fingerprint": base.fingerprint}
        self.task |= {"recipe": recipe_for(base, recipe).name, "seed": seed, "steps": steps}
        self.center = CenterNode(base, **(fusion or {}))
        self.asked: list[int] = []  # node ids
        self.left_out: dict[int, str] = {}  # node id -> why
        self.fused: DiffusionModel | None = None

    def summary(self) -> None:
        """Say what will be asked of the clients."""
        LOG.info("Asking for concepts: %s", ", ".join(f"{name} {value}" for name, value in self.task.items()))

    def start(self, grid: Grid, initial_arrays: ArrayRecord | None = None, num_rounds: int = 1, **options):
        """Run the round; `options` as in Flower, e.g. timeout. Raises ValueError if there shall be more than one."""
        if num_rounds != 1:
            raise ValueError("Clients tune once and the center fuses once: leave num_rounds at 1.")
        return super().start(grid, initial_arrays or ArrayRecord(), 1, **options)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The task, once for every client that is there; no weights travel, as clients have the base."""
        self.asked = connected(grid, self.clients)
        content = RecordDict({"task": ConfigRecord(self.task)})
        return [Message(content, dst_node_id=node, message_type=MessageType.TRAIN) for node in self.asked]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[None, MetricRecord]:
        """Let usable concepts join and fuse them (paper 3.3.2); raises RuntimeError if there are none.

        The result is a model with words of its own, so it goes to `output` and not into Flower's arrays. The CenterNode
        is written first: if the fusion fails, load it and go on from there without calling the clients again.
        """
        answers = {reply.metadata.src_node_id: reply for reply in replies}
        for node in self.asked:  # in their order, so that of two clients with one name the same one is taken
            try:
                self.center.join(concept := unpacked(content_of(answers.get(node)), self.base))
                LOG.info("Client %d joined with %r, written %s", node, concept.name, concept.phrase)
            except Exception as error:  # whatever a client sends, the others' round goes on
                self.left_out[node] = str(error)
                LOG.warning("Client %d is left out: %s", node, error)
        if not self.center.members:
            raise RuntimeError(
                f"No usable concept came from {len(self.asked)} clients: mend what is said of them above."
            )
        self.center.save(self.output / "center")
        self.fused = self.center.fuse(progress=False)
        self.fused.save_pipeline(self.output / "fused")
        return None, MetricRecord({"clients": len(self.center.members), "left-out": len(self.left_out)})

    def configure_evaluate(self, *args) -> list[Message]:
        """Nothing: scores need pictures, which stay with the clients."""
        return []

    def aggregate_evaluate(self, *args) -> None:
        """Nothing, see `configure_evaluate`."""


def content_of(reply: Message | None) -> RecordDict:
    """What a client answered; raises ValueError with one sentence if that was an error or nothing."""
    if reply is None:
        raise ValueError("it did not answer in time: start again with a longer timeout.")
    if reply.has_error():
        reason = " ".join((reply.error.reason or "").split())
        raise ValueError(reason or f"it failed with Flower's error {reply.error.code}, see its own log.")
    return reply.content


def connected(grid: Grid, clients: int) -> list[int]:
    """Sorted ids of so many nodes or more, after WAIT seconds of those there; raises RuntimeError if there is none."""
    end = time.monotonic() + WAIT
    while len(nodes := sorted(grid.get_node_ids())) < clients and time.monotonic() < end:
        time.sleep(1)
    if not nodes:
        raise RuntimeError("No client is connected: start them first, each with flower-supernode.")
    return nodes


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """The center's whole part, from the run config; raises ValueError if that names no output."""
    config = context.run_config
    if not config.get("output"):
        raise ValueError("Nothing says where the result goes: flwr run . --run-config 'output=\"folder\"'.")
    options = {name: config[name] for name in ("recipe", "seed", "steps", "clients") if name in config}
    strategy = CenterStrategy(load_base(config.get("base") or "pocket"), config["output"], **options)
    strategy.start(grid, timeout=float(config.get("timeout", 3600)))
