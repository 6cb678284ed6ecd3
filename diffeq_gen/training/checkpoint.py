"""What survives a run: its state, by orbax, and beside it what it was a run of.

folder/config.json, folder/<step>/ ...        each written whole or not at all
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from diffeq_gen.training.state import State

__all__ = ["Checkpoints"]


class Checkpoints:
    """The checkpoints of one run in one folder; the newest `keep` of them stay.

    `defaults` are what a run did that was begun before these names were part of a configuration.
    Raises: ValueError where the folder holds a run of another configuration.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], *, keep: int = 2, defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = folder.absolute()
        path = self.folder / "config.json"
        if path.exists():
            self._compare(path, config, defaults or {})
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".part")
            draft.write_text(json.dumps(config, indent=1) + "\n")
            draft.replace(path)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(
            self.folder, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def _compare(self, path: Path, config: dict[str, Any], defaults: Mapping[str, Any]) -> None:
        try:
            found = {**defaults, **json.loads(path.read_text())}
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        for name in sorted({*found, *config}):
            if found.get(name) != config.get(name):
                raise ValueError(
                    f"{self.folder} holds a run with {name}={found.get(name)!r}, this one has {name}={config.get(name)!r}"
                )

    def save(self, state: State) -> None:
        """Writes the state under its step; a second save of the same step does nothing."""
        step = int(state.step)
        if step not in self.manager.all_steps():
            self.manager.save(step, args=ocp.args.StandardSave(_plain(state)))
            self.manager.wait_until_finished()

    def latest(self, like: State) -> State | None:
        """The newest state, in the structure of `like`, of which only shapes are asked; None where none was saved.

        Raises: ValueError where the checkpoint is damaged, or naming the parameter where it is one of another network.
        """
        step = self.manager.latest_step()
        if step is None:
            return None
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shaped = {**jax.eval_shape(_numbers, like), "checksum": jax.ShapeDtypeStruct((), np.uint32)}
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shaped)
        path = self.folder / str(step)
        try:
            kept, wanted = _shapes(self.manager.item_metadata(step).tree), _shapes(target)
        except Exception as error:
            raise ValueError(f"checkpoint {path} is damaged: {_first_line(error)}") from error
        for name in sorted({*kept, *wanted}, key=lambda name: (not name.startswith("params."), name)):
            there, here = kept.get(name, "no shape"), wanted.get(name, "no shape")
            if there != here:
                raise ValueError(f"checkpoint {path} is of another network: {name} has {there} there and {here} here")
        try:
            found = self.manager.restore(step, args=ocp.args.StandardRestore(target))
        except Exception as error:
            raise ValueError(f"checkpoint {path} is damaged: {_first_line(error)}") from error
        if int(found.pop("checksum")) != _checksum(found):
            raise ValueError(f"checkpoint {path} is damaged: its numbers are not those that were saved")
        seen = found.pop("seen", {})
        remembered = jax.tree.unflatten(jax.tree.structure(like.seen), [seen[name] for name in _named(like.seen)])
        return State(**{**found, "key": jax.random.wrap_key_data(found["key"]), "seen": remembered})

    def close(self) -> None:
        """Waits for what is being written."""
        self.manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _numbers(state: State) -> dict[str, Any]:
    """The state with its key as numbers, and what it remembers of losses by name; without that, where it is nothing."""
    tree, seen = {**state._asdict(), "key": jax.random.key_data(state.key)}, _named(state.seen)
    return {**tree, "seen": seen} if seen else {name: leaf for name, leaf in tree.items() if name != "seen"}


def _plain(state: State) -> dict[str, Any]:
    tree = _numbers(state)
    return {**tree, "checksum": np.asarray(_checksum(tree), np.uint32)}


def _checksum(tree: Any) -> int:
    """CRC-32 of every leaf in order: orbax stores numbers without one, and reads a flipped bit back as it finds it."""
    value = 0
    for leaf in jax.tree.leaves(tree):
        value = zlib.crc32(np.asarray(leaf).tobytes(), value)
    return value


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """name -> shape, of arrays or of what is recorded of them."""
    return {name: tuple(leaf.shape) for name, leaf in _named(tree).items()}


def _named(tree: Any) -> dict[str, Any]:
    """name -> leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
