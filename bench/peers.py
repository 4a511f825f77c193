"""The peers in plain PyTorch: AlexNet, a training step of DCH, the agent's reward and step."""

import math
from typing import Any

GAMMA, FLOOR = 20.0, 0.005


def alexnet(torch: Any, num_bits: int, hidden: int = 4096) -> Any:
    """Returns torchvision's AlexNet with a hash layer as its last layer."""
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(True), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(True), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(True),
        nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(True),
        nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(True), nn.MaxPool2d(3, 2),
        nn.Flatten(), *head(torch, num_bits, hidden),
    )  # fmt: skip


def head(torch: Any, num_bits: int, hidden: int = 4096) -> list[Any]:
    """Returns fc6, fc7 and the hash layer, with dropout."""
    nn = torch.nn
    return [
        nn.Dropout(), nn.Linear(9216, hidden), nn.ReLU(True),
        nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(True),
        nn.Linear(hidden, num_bits),
    ]  # fmt: skip


def dch_loss(torch: Any, logits: Any, similar: Any, fraction: float) -> Any:
    """Returns DCH's loss of a batch, as `methods.dch` defines it."""
    num_bits = logits.shape[1]
    relaxed = torch.nn.functional.normalize(torch.tanh(logits)) * math.sqrt(num_bits)
    distance = (num_bits - relaxed @ relaxed.T) / 2
    distance = distance.clamp(min=FLOOR * num_bits)
    pair = torch.log1p(torch.where(similar, distance / GAMMA, GAMMA / distance))
    weight = torch.where(similar, 1 / fraction, 1 / (1 - fraction))
    off_diagonal = ~torch.eye(len(logits), dtype=torch.bool)
    apart = (num_bits - (relaxed * torch.sign(relaxed).detach()).sum(1)) / 2
    penalty = 0.1 * torch.log1p(apart.clamp(min=0) / GAMMA)
    return (weight * pair)[off_diagonal].mean() + penalty.mean()


def train_step(torch: Any, network: Any, optimizer: Any, inputs: Any, similar: Any) -> Any:
    """Makes one training step and returns the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss = dch_loss(torch, network(inputs), similar, 0.2)
    loss.backward()
    optimizer.step()
    return loss


def sgd(torch: Any, network: Any) -> Any:
    """Returns the paper's optimizer."""
    return torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)


def reward(torch: Any, codes, region_codes, labels, train_codes, train_labels, fraction) -> Any:
    """Returns the reward of Eq. 6, computed directly from matrices of all pairs.

    Args:
      torch: The module PyTorch.
      codes: Codes of the whole photos, float [b, q] of -1 and +1.
      region_codes: Codes of a region of each photo, float [b, q].
      labels: Multi-hot labels of the photos, float [b, c].
      train_codes: Codes of the training set, float [n, q].
      train_labels: Multi-hot labels of the training set, float [n, c].
      fraction: Fraction of similar pairs.
    """
    num_bits = codes.shape[1]
    distance = (num_bits - codes @ train_codes.T) / 2
    nearer = torch.minimum(distance, (num_bits - region_codes @ train_codes.T) / 2)
    similar = labels @ train_labels.T > 0
    weight = torch.where(similar, 1 / fraction, 1 / (1 - fraction))

    def loss(distance):
        distance = distance.clamp(min=FLOOR * num_bits)
        return weight * torch.log1p(torch.where(similar, distance / GAMMA, GAMMA / distance))

    return (loss(distance) - loss(nearer)).mean(1)


def policy(torch: Any, width: int, widths: tuple[int, ...]) -> Any:
    """Returns the agent's network."""
    nn, layers = torch.nn, []
    for size in widths:
        layers += [nn.Linear(width, size, bias=False), nn.BatchNorm1d(size), nn.ReLU(True)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 2))


def crops(torch: Any, images: Any, size: int) -> Any:
    """Returns a random quarter of each image [b 3 s s], resized with antialiasing."""
    half = images.shape[2] // 2
    corner = torch.randint(0, half + 1, (len(images), 2)).tolist()
    regions = torch.stack(
        [x[:, i : i + half, j : j + half] for x, (i, j) in zip(images, corner, strict=True)]
    )
    resized = torch.nn.functional.interpolate(
        regions.float(), (size, size), mode="bilinear", antialias=True
    )
    return (resized / 255 - 0.45) / 0.225


def agent_step(torch, base, agent, optimizer, whole, region, labels, train_codes, train_labels):
    """Makes one step of REINFORCE: two forward passes, the reward, an update of the policy.

    Args:
      torch: The module PyTorch.
      base: The base network up to fc7, and its hash layer.
      agent: The policy.
      optimizer: Optimizer of the policy.
      whole: Inputs of the base network for whole photos.
      region: Inputs for a region of each photo, or a function that returns them.
      labels: Multi-hot labels of the photos, float [b, c].
      train_codes: Codes of the training set, float [n, q] of -1 and +1.
      train_labels: Multi-hot labels of the training set, float [n, c].
    """
    to_features, to_logits = base
    with torch.no_grad():
        features = [to_features(x() if callable(x) else x) for x in (whole, region)]
        codes = [torch.where(to_logits(x) >= 0, 1.0, -1.0) for x in features]
        rewards = reward(torch, codes[0], codes[1], labels, train_codes, train_labels, 0.2)
        rewards = rewards / (rewards.square().mean().sqrt() + 1e-6)
    logits = agent(torch.cat([*features, *codes], 1))
    log_prob = torch.log_softmax(logits, 1)
    action = torch.distributions.Categorical(logits=logits.detach()).sample()
    advantage = torch.where(action == 1, rewards, 0.0)
    loss = -(log_prob.gather(1, action[:, None])[:, 0] * advantage).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss
