"""A worker of the benchmark that trains with PyTorch, eager and channels_last; in an environment of its own."""

import torch
import worker
from torch import nn
from torch.nn import functional


def study(preset):
    normalised = preset != "first_version"
    stack, channels = [], 3
    for filters in (32, 64, 128):
        for _ in range(2 if preset == "augmented" else 1):
            stack.append(nn.Conv2d(channels, filters, 3, padding="same"))
            stack += [nn.BatchNorm2d(filters, eps=1e-3, momentum=0.01)] if normalised else []
            stack.append(nn.ReLU())
            channels = filters
        stack.append(nn.MaxPool2d(2))
    stack.append(nn.Flatten())
    width = 128 * 4 * 4
    for units in (512, 256) if normalised else (256,):
        stack.append(nn.Linear(width, units))
        stack += [nn.BatchNorm1d(units, eps=1e-3, momentum=0.01)] if normalised else []
        stack.append(nn.ReLU())
        width = units
    stack += [nn.Dropout(0.3)] if normalised else []
    return nn.Sequential(*stack, nn.Linear(width, 10))


def airbench(activation, divisor=9):
    """The network of airbench94 (Jordan 2024), rewritten from its paper. divisor: of its logits."""

    def norm(filters):
        layer = nn.BatchNorm2d(filters, eps=1e-12, momentum=0.4)
        layer.weight.requires_grad = False
        return layer

    stack, channels = [nn.Conv2d(3, 24, 2), activation()], 24
    for filters in (64, 256, 256):
        stack += [nn.Conv2d(channels, filters, 3, padding="same", bias=False), nn.MaxPool2d(2)]
        stack += [norm(filters), activation()]
        stack += [nn.Conv2d(filters, filters, 3, padding="same", bias=False), norm(filters), activation()]
        channels = filters
    net = nn.Sequential(
        *stack, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels, 10, bias=False), Scaled(divisor)
    )
    net[0].weight.requires_grad = False
    for layer in net[1:]:
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight.data[: layer.weight.shape[1]])
    return net


class Scaled(nn.Module):
    def __init__(self, divisor):
        super().__init__()
        self.divisor = divisor

    def forward(self, logits):
        return logits / self.divisor


def slides(images):
    """Rotation, flips both ways and shifts, each image by its own, in one resampling."""
    count, device = len(images), images.device
    angles = (torch.rand(count, device=device) * 2 - 1) * 15 * torch.pi / 180
    across, down = (1 - 2 * torch.randint(0, 2, (count,), device=device) for _ in range(2))
    moved = (torch.rand(count, 2, device=device) * 2 - 1) * 0.2
    rows = [torch.cos(angles) * across, -torch.sin(angles) * down, moved[:, 0]]
    rows += [torch.sin(angles) * across, torch.cos(angles) * down, moved[:, 1]]
    grid = functional.affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), images.shape, align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def flip_and_shift(images, pixels=2, mirror=True):
    """Mirror half of the images, and move each by up to `pixels` pixels, by reflection."""
    (count, _, height, width), device = images.shape, images.device
    if mirror:
        images = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.5, images.flip(3), images)
    padded = functional.pad(images, [pixels] * 4, mode="reflect")
    offsets = torch.randint(0, 2 * pixels + 1, (count, 2), device=device)
    rows = offsets[:, :1] + torch.arange(height, device=device)
    columns = offsets[:, 1:] + torch.arange(width, device=device)
    each = torch.arange(count, device=device)[:, None, None]
    chosen = padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]]
    return chosen.permute(0, 3, 1, 2)  # channels_last, as it was


class Torch:
    """A model and its images, uint8 in memory; a permutation an epoch, scaled and augmented a batch at a time."""

    def __init__(self, options):
        torch.manual_seed(0)
        torch.set_num_threads(worker.cores())
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.options, self.is_fast = options, options.model == "fast"
        activation = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}[worker.FAST_ACTIVATION]
        model = airbench(activation) if self.is_fast else study(options.model)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        sgd, fused = {"lr": 0.01, "momentum": 0.85, "nesterov": True}, self.device == "cuda"
        self.optimizer = (
            torch.optim.SGD(weights, **sgd, fused=fused)
            if self.is_fast
            else torch.optim.Adam(weights, 0.005, fused=fused)
        )
        if options.compile:
            self.loss = torch.compile(self.loss, mode="reduce-overhead" if options.cuda_graphs else "default")
        images, labels = worker.images(options.images)
        self.images = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
        self.labels = torch.from_numpy(labels).to(self.device)
        self.augment = {"augmented": slides, "fast": flip_and_shift}.get(options.model, lambda images: images)

    def loss(self, images, labels):
        logits = self.model(images).float()
        if self.is_fast:
            return functional.cross_entropy(logits, labels, label_smoothing=0.2)
        return functional.mse_loss(logits.softmax(1), functional.one_hot(labels, 10).float())

    def autocast(self):
        return torch.autocast(self.device, torch.bfloat16, enabled=self.options.precision == "bfloat16")

    def train(self):
        self.model.train()
        order, total = torch.randperm(len(self.labels), device=self.device), 0.0
        size = self.options.batch_size
        batches = order[: len(order) // size * size].split(size)
        for rows in batches:
            images = self.augment(self.images[rows].float() / 255)
            with self.autocast():
                loss = self.loss(images, self.labels[rows])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        return float(total) / len(batches)

    def evaluate(self):
        self.model.eval()
        with torch.inference_mode(), self.autocast():
            images, labels = self.images[: worker.SCORED], self.labels[: worker.SCORED]
            pairs = zip(images.split(500), labels.split(500), strict=True)
            losses = [self.loss(some.float() / 255, of).item() * len(of) for some, of in pairs]
        return sum(losses) / len(labels)

    def facts(self):
        return {"parameters": sum(weight.numel() for weight in self.model.parameters())}


if __name__ == "__main__":
    worker.serve(Torch)
