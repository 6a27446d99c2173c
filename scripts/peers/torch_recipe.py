"""airbench94 (Jordan 2024, arXiv 2404.00498) and airbench94_muon (Jordan et al. 2024) in PyTorch, written from the papers.

    .venv-torch/bin/python scripts/peers/torch_recipe.py FOLDER [--recipe muon] [--seeds 0 1 2]

FOLDER holds `cifar-10-batches-bin`. A line of JSON a seed. What differs from the publications: bfloat16 by autocast and
float32 weights instead of half precision, and mostly a CPU, on which batches of muon are smaller. All 50,000 training
images are used, and the test set is scored once.
"""

import argparse
import functools
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


def batches(images, labels, epochs, batch_size, seed):
    """Yield (images, labels) of every step: mirrored in every other epoch (Jordan 2024), and shifted."""
    generator = torch.Generator().manual_seed(seed)
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    images = torch.where(mirrored.to(DEVICE), images.flip(3), images)
    steps_an_epoch = len(labels) // batch_size
    total, epoch = round(epochs * steps_an_epoch), 0
    while total > 0:
        shown = images if epoch % 2 == 0 else images.flip(3)
        order = torch.randperm(len(labels), generator=generator).to(DEVICE)
        for rows in order[: steps_an_epoch * batch_size].split(batch_size)[:total]:
            yield flip_and_shift(shown[rows], mirror=False), labels[rows]
        total, epoch = total - steps_an_epoch, epoch + 1


def summed_loss(model, images, labels, precision):
    with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(images).float()
    return functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING, reduction="sum")


def train_sgd(model, loss_of, given, total, steps_an_epoch, batch_size):
    """Train as airbench94 does; return the loss of the last batch."""
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
    for step, (images, labels) in enumerate(given, 1):
        model[0].bias.requires_grad = step <= WHITENING_BIAS_EPOCHS * steps_an_epoch
        loss = loss_of(images, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 5 == 0 or step == total:  # Lookahead, slower and slower to forget; at the end its averages alone
            keep = 1.0 if step == total else 0.95**5 * (step / total) ** 3
            for name, value in model.state_dict().items():
                if name in averages:
                    averages[name].lerp_(value, 1 - keep)
                    value.copy_(averages[name])
    return float(loss.detach()) / batch_size


def orthogonalized(matrix):
    """Return nearly U V^T of a matrix U S V^T by three Newton-Schulz iterations."""
    x = matrix.bfloat16() if DEVICE == "cuda" else matrix
    x = x / (x.norm() + 1e-7)
    is_tall = x.size(0) > x.size(1)
    x = x.T if is_tall else x
    for _ in range(3):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if is_tall else x).float()


def train_muon(model, loss_of, given, total, steps_an_epoch, batch_size):
    """Train as airbench94_muon does, which has its rates for losses that are added up; return the last batch's loss."""
    decay, whitening_steps = 2e-6 * batch_size, WHITENING_BIAS_EPOCHS * steps_an_epoch
    head, kernels = model[-2].weight, [m.weight for m in model[1:] if isinstance(m, nn.Conv2d)]
    norms = [m.bias for m in model if isinstance(m, nn.BatchNorm2d)]
    groups = [{"params": [model[0].bias], "lr": 0.053}, {"params": norms, "lr": 0.053}, {"params": [head], "lr": 0.67}]
    groups = [group | {"weight_decay": decay / group["lr"], "peak": group["lr"]} for group in groups]
    optimizer = torch.optim.SGD(groups, momentum=0.85, nesterov=True, fused=DEVICE == "cuda")
    velocities = [torch.zeros_like(kernel) for kernel in kernels]
    step_of_kernel = torch.compile(muon_step) if DEVICE == "cuda" else muon_step
    # On the device, so that no step waits for a copy. By the square root of the batch, as its successor has 0.205 at 1,536.
    rates = 0.24 * (batch_size / 2000) ** 0.5 * (1 - torch.arange(total, device=DEVICE) / total)
    for step, (images, labels) in enumerate(given):
        left = 1 - step / total
        for group, share in zip(optimizer.param_groups, (1 - step / whitening_steps, left, left), strict=True):
            group["lr"] = group["peak"] * max(share, 0.0)
        model[0].bias.requires_grad = step < whitening_steps
        loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for kernel, velocity in zip(kernels, velocities, strict=True):
                step_of_kernel(kernel, velocity, kernel.grad, rates[step])
        model.zero_grad(set_to_none=True)
    return float(loss.detach()) / batch_size


def muon_step(kernel, velocity, gradient, rate):
    velocity.mul_(0.6).add_(gradient)
    direction = orthogonalized((gradient + 0.6 * velocity).reshape(len(gradient), -1)).reshape(gradient.shape)
    kernel.mul_(len(kernel) ** 0.5 / kernel.norm()).sub_(direction * rate)


# By name: the function, epochs, images in a batch, and what logits are divided by. Batches of 2,000, as published, take two
# cores of a CPU 1.6 times as long per image as those of 512.
RECIPES = {"sgd": (train_sgd, 9.9, 1024, 9), "muon": (train_muon, 8.0, 2000 if DEVICE == "cuda" else 512, 256)}


def score(model, images, labels, precision):
    """Return the accuracy without and with views."""
    model.eval()
    right = torch.zeros(2, device=DEVICE)
    with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bfloat16"):
        for part, of in zip(images.split(500), labels.split(500), strict=True):
            for number, logits in enumerate((model(part), averaged_logits(model, part))):
                right[number] += (logits.argmax(1) == of).sum()
    return (right / len(labels)).tolist()


def trained(args, loss, seed, images, labels):
    """Return a network after its training. loss: summed_loss, or what torch.compile makes of it."""
    train, _, _, divisor = RECIPES[args.recipe]
    torch.manual_seed(seed)
    model = airbench(nn.GELU, divisor).to(DEVICE, memory_format=torch.channels_last)
    if args.recipe == "muon":
        model[-2].weight.data /= model[-2].weight.std()
    whiten(model[0], images[:5000])
    model.train()
    loss_of = functools.partial(loss, model, precision=args.precision)
    steps = len(labels) // args.batch_size
    total = round(args.epochs * steps)
    given = batches(images, labels, args.epochs, args.batch_size, seed)
    last = train(model, loss_of, given, total, steps, args.batch_size)
    return model, last


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--recipe", choices=RECIPES, default="muon")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=float, help="default: as published, 9.9 or 8")
    parser.add_argument("--batch-size", type=int, help="default: 1024, or of muon 2000 on a GPU and 512 on a CPU")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument(
        "--compile", action="store_true", help="compile with torch.compile, in a training that does not count"
    )
    args = parser.parse_args()
    args.epochs, args.batch_size = args.epochs or RECIPES[args.recipe][1], args.batch_size or RECIPES[args.recipe][2]
    torch.set_num_threads(cores())
    images, labels, test_images, test_labels = read(args.folder)
    compiled, loss = time.perf_counter(), torch.compile(summed_loss) if args.compile else summed_loss
    if args.compile:
        trained(args, loss, 0, images[: 4 * args.batch_size], labels[: 4 * args.batch_size])
    compiled = time.perf_counter() - compiled
    for seed in args.seeds:
        began = time.perf_counter()
        model, last = trained(args, loss, seed, images, labels)
        done = time.perf_counter()
        plain, views = score(model, test_images, test_labels, args.precision)
        result = {"seed": seed, "test_accuracy": views, "test_accuracy_without_views": plain, "loss": last}
        result |= {"train_seconds": done - began, "evaluate_seconds": time.perf_counter() - done}
        print(json.dumps(result | {"compile_seconds": compiled}), flush=True)


if __name__ == "__main__":
    main()
