"""airbench94 (Jordan 2024, arXiv 2404.00498) in PyTorch, on a CPU if there is no GPU: its network and settings, anew.

    .venv-torch/bin/python scripts/peers/torch_recipe.py FOLDER [--seed 0] [--epochs 9.9] [--json OUT.json]

FOLDER holds `cifar-10-batches-bin`. What differs from the publication: bfloat16 by autocast and float32 weights instead
of half precision, and mostly a CPU. All 50,000 training images are used, and the test set is scored once.
"""

import argparse
import json
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch_peer import airbench, flip_and_shift
from worker import cores

RATE, DECAY, MOMENTUM, BIASES = 11.5, 0.0153, 0.85, 64.0
WHITENING_BIAS_EPOCHS, SMOOTHING = 3, 0.2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def read(folder):
    """Return images float32 [N, 3, 32, 32], standardized, and labels int64 [N], of the training and the test set."""

    def batch(name):
        rows = np.fromfile(f"{folder}/cifar-10-batches-bin/{name}", np.uint8).reshape(-1, 3073)
        images, labels = torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32)), torch.from_numpy(rows[:, 0]).long()
        return images.to(DEVICE), labels.to(DEVICE)

    pairs = [batch(f"data_batch_{number}.bin") for number in range(1, 6)]
    images, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
    test_images, test_labels = batch("test_batch.bin")
    floats = images.float() / 255
    mean, deviation = floats.mean((0, 2, 3), keepdim=True), floats.std((0, 2, 3), keepdim=True)
    layout = torch.channels_last
    train = ((floats - mean) / deviation).to(memory_format=layout)
    test = ((test_images.float() / 255 - mean) / deviation).to(memory_format=layout)
    return train, labels, test, test_labels


def whiten(layer, images, epsilon=5e-4):
    """Set the first layer to the principal components of 2 x 2 patches, scaled to one variance, and their negatives."""
    patches = functional.unfold(images, 2).transpose(1, 2).reshape(-1, 12)
    variances, components = torch.linalg.eigh(patches.T @ patches / len(patches))
    scaled = (components / torch.sqrt(variances + epsilon)).T.flip(0).reshape(12, 3, 2, 2)
    layer.weight.data[:] = torch.cat([scaled, -scaled])


def averaged_logits(model, images):
    """Average over an image and its mirror image, half of it, and a quarter each of both moved by a pixel."""

    def mirrored(part):
        return model(part) + model(part.flip(3))

    padded = functional.pad(images, [1] * 4, mode="reflect")
    return mirrored(images) / 4 + (mirrored(padded[:, :, :-2, :-2]) + mirrored(padded[:, :, 2:, 2:])) / 8


def train(model, images, labels, epochs, batch_size, seed):
    """Train for a number of epochs that need not be whole; return the loss of the last batch."""
    generator = torch.Generator().manual_seed(seed)
    steps_an_epoch = len(labels) // batch_size
    total = round(epochs * steps_an_epoch)
    # Published per 1,024 images and decoupled from momentum; PyTorch wants them per step, for losses that are added up.
    scale = 1024 * (1 + 1 / (1 - MOMENTUM))
    rate, decay = RATE / scale, DECAY * batch_size / scale
    biases = [weight for weight in model[1:].parameters() if weight.requires_grad and weight.dim() == 1]
    others = [weight for weight in model.parameters() if weight.requires_grad and all(weight is not b for b in biases)]
    groups = [
        {"params": biases, "lr": rate * BIASES, "weight_decay": decay / (rate * BIASES)},
        {"params": others, "lr": rate, "weight_decay": decay / rate},
    ]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)

    def triangle(step):
        peak = 0.23 * total
        return 0.2 + 0.8 * step / peak if step < peak else 1 - 0.93 * (step - peak) / (total - peak)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, triangle)
    averages = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    images = torch.where(mirrored.to(DEVICE), images.flip(3), images)
    loss, step, epoch = None, 0, 0
    model.train()
    while step < total:
        model[0].bias.requires_grad = epoch < WHITENING_BIAS_EPOCHS
        shown = images if epoch % 2 == 0 else images.flip(3)
        order = torch.randperm(len(labels), generator=generator).to(DEVICE)
        for rows in order[: steps_an_epoch * batch_size].split(batch_size)[: total - step]:
            with torch.autocast(DEVICE, torch.bfloat16):
                logits = model(flip_and_shift(shown[rows], mirror=False)).float()
            loss = functional.cross_entropy(logits, labels[rows], label_smoothing=SMOOTHING, reduction="sum")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % 5 == 0 or step == total:  # Lookahead, slower and slower to forget; at the end its averages alone
                keep = 1.0 if step == total else 0.95**5 * (step / total) ** 3
                for name, value in model.state_dict().items():
                    if name in averages:
                        averages[name].lerp_(value, 1 - keep)
                        value.copy_(averages[name])
        epoch += 1
    return float(loss.detach()) / batch_size


def score(model, images, labels):
    """Return the accuracy without and with views."""
    model.eval()
    right = torch.zeros(2, device=DEVICE)
    with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
        for part, of in zip(images.split(500), labels.split(500), strict=True):
            for number, logits in enumerate((model(part), averaged_logits(model, part))):
                right[number] += (logits.argmax(1) == of).sum()
    return (right / len(labels)).tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=9.9)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(cores())
    images, labels, test_images, test_labels = read(args.folder)
    began = time.perf_counter()
    model = airbench(nn.GELU).to(DEVICE, memory_format=torch.channels_last)
    whiten(model[0], images[:5000])
    loss = train(model, images, labels, args.epochs, args.batch_size, args.seed)
    trained = time.perf_counter()
    plain, views = score(model, test_images, test_labels)
    result = {"test_accuracy": views, "test_accuracy_without_views": plain, "loss": loss}
    result |= {"train_seconds": trained - began, "evaluate_seconds": time.perf_counter() - trained}
    print(json.dumps(result))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file)


if __name__ == "__main__":
    main()
