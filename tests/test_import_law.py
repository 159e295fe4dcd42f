"""Imports point down, and only the rooms at the network's edge know torch.distributed."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "disttrain"
KNOW_TORCH_DISTRIBUTED = ("worlds/", "launch/", "strategies/attach.py", "strategies/attach_zero.py", "strategies/attach_fsdp.py")
ORDER = [  # from the top to the bottom; a room imports from its own and lower lines only
    {"cli"},
    {"doctor"},
    {"launchers"},
    {"worker"},
    {"run", "emulation", "merging"},
    {"simulation"},
    {"training"},
    {"config"},
    {"strategies", "federated"},
    {"compression", "topology", "optim", "recording", "models", "data", "objectives"},
    {"launch"},
    {"worlds"},
    {"parameters", "random", "component", "import_path", "quantities", "task", "consensus"},
]
HEIGHT = {name: -level for level, names in enumerate(ORDER) for name in names}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_only_worlds_launch_and_attach_import_torch_distributed():
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).as_posix()
        if not place.startswith(KNOW_TORCH_DISTRIBUTED):
            assert not [name for name in imports(path) if name.startswith("torch.distributed")], place


def test_imports_point_down():
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        own = "config" if own.startswith("config") else own
        for name in imports(path):
            if name.startswith("disttrain.") and own != "__init__":
                room = name.split(".")[1]
                room = "config" if room.startswith("config") else room
                assert room == own or HEIGHT[room] < HEIGHT[own], f"{own} imports {room}"
