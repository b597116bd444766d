"""Two photographs, mixed by the reader: masks that the library draws, as a script, and the tiles of the front page."""
import base64
import io
import json

import torch
import torch.nn.functional as F
from PIL import Image

from mix_research import figures
from mix_research.mixers import build
from sources import filled, write

SIZE, SEEDS = 144, 5  # pixels along a side; draws to choose from
LAMS = [k / 10 for k in range(11)]  # shares to choose from
METHODS = dict(mixup="Mixup", cutmix="CutMix", resizemix="ResizeMix", saliencymix="SaliencyMix", gridmix="GridMix",
               fmix="FMix", gmix="GMix", agmix="AGMix", lmix="LMix", randomix="RandoMix", miamix="MiAMix")
FOLLOWS = {"saliencymix": "b", "lmix": "a"}  # the mask of these follows an image; that of others a seed
PHOTOS = ["cat", "astronaut", "coffee", "rocket", "cameraman", "coins", "galaxies", "tissue", "moon",  # scikit-image
          "temple", "flower", "retina"]


def cut(image):
    "The middle of a photograph, (3, SIZE, SIZE) in [0, 1]."
    p = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    side = min(p.shape[2:])
    top, left = (p.shape[2] - side) // 2, (p.shape[3] - side) // 2
    square = p[..., top:top + side, left:left + side]
    return F.interpolate(square, size=(SIZE, SIZE), mode="bilinear", antialias=True)[0]


def photographs():
    "The photographs `PHOTOS`, which ship with scikit-image and scikit-learn, (12, 3, SIZE, SIZE) in [0, 1]."
    from skimage import data
    from sklearn.datasets import load_sample_images
    more = [*load_sample_images().images, data.retina()]
    return torch.cat([figures.photos(9, SIZE), torch.stack([cut(image.copy()) for image in more])])


def bytes_of(t): return Image.fromarray((t.clamp(0, 1) * 255).round().byte().numpy())


def encoded(image, form, **kw):
    buffer = io.BytesIO()
    image.save(buffer, form, **kw)
    return buffer.getvalue()


def data_uri(image, form, **kw):
    return f"data:image/{form.lower()};base64,{base64.b64encode(encoded(image, form, **kw)).decode()}"


# --- masks

def keeping(mixer, lam):
    "The mixer, and those that it chooses from, made to keep the share `lam` of the first image."
    def share(n, x, generator): return torch.full((n,), 1 - lam)
    for m in (mixer, *getattr(mixer, "candidates", ())): m.share = share
    return mixer


def draw(mixer, seed, x, partner):
    "What the library draws for an image and its partner: weights (SIZE, SIZE), exact share, box or None."
    batch = torch.stack([x, partner])
    mix = mixer.make(torch.tensor([1, 0]), batch, batch, torch.Generator().manual_seed(seed))
    box = mix.pastes[0].box[0].tolist() if mix.pastes else None
    return mix.w.expand(2, 1, *x.shape[1:])[0, 0], float(mix.lam[0]), box


def miamix_draws(x):
    "MiAMix draws its own shares: for every share asked for, those of 400 draws whose label comes nearest."
    tried = [draw(build("miamix"), seed, x[0], x[1]) for seed in range(400)]
    free, nearest = set(range(400)), []
    for lam in LAMS:
        best = sorted(free, key=lambda k: (abs(tried[k][1] - lam), k))[:SEEDS]
        free -= set(best)
        nearest.append([tried[k] for k in best])
    return [list(row) for row in zip(*nearest)]


def draws_of(name, x):
    "A row for each seed, or for each image that the mask follows; in it a draw for each share."
    if name == "miamix": return miamix_draws(x)
    by = FOLLOWS.get(name)
    if by is None:
        seeds = [0] if name == "mixup" else range(SEEDS)
        return [[draw(keeping(build(name), lam), 7 * r + 1, x[0], x[1]) for lam in LAMS] for r in seeds]
    pairs = [(x[r], x[1]) if by == "a" else (x[0], x[r]) for r in range(len(x))]
    return [[draw(keeping(build(name), lam), 7 * r + 1, a, b) for lam in LAMS] for r, (a, b) in enumerate(pairs)]


def described(name, label, rows):
    "The draws of a method, for the script: shares, masks as one sheet, boxes where there are some."
    out = dict(name=label, by=FOLLOWS.get(name, "seed"), lam=[[round(lam, 4) for _, lam, _ in row] for row in rows])
    if name != "mixup":
        sheet = torch.cat([torch.cat([w for w, _, _ in row], 1) for row in rows])
        out["masks"] = data_uri(bytes_of(sheet), "PNG", optimize=True)
    boxes = [[box for _, _, box in row] for row in rows]
    return out | (dict(box=boxes) if any(map(any, boxes)) else {})


# --- what is written

def mixing(x):
    "Writes the page, and photographs and masks as a script: a page opened as a file may load nothing else."
    drawn = {name: draws_of(name, x) for name in METHODS}
    methods = {name: described(name, METHODS[name], rows) for name, rows in drawn.items()}
    images = [dict(name=n, src=data_uri(bytes_of(p.permute(1, 2, 0)), "JPEG", quality=90)) for n, p in zip(PHOTOS, x)]
    data = json.dumps(dict(size=SIZE, lams=LAMS, images=images, methods=methods))
    write("static/mix-data.js", f"const MIX = {data};\n")
    count = sum(len(row) for rows in drawn.values() for row in rows)
    write("mix.md", filled("mix.md", draws=count, size=SIZE, seeds=SEEDS))


def telling(mixer, batch):
    "A draw that shows the method: the first that keeps about half of the first image."
    for seed in range(50):
        mix = mixer.make(torch.tensor([1, 0]), batch, batch, torch.Generator().manual_seed(seed))
        if .45 < mix.lam[0] < .7: break
    return mix


def tile(name, label, x):
    "Writes a cat and a cup of coffee mixed by one method, and returns how they are shown."
    batch = torch.stack([x[0], x[2]])
    mix, file = telling(build(name), batch), f"front/{name}.webp"
    write(f"static/{file}", encoded(bytes_of(mix.blend(batch)[0].permute(1, 2, 0)), "webp", quality=85))
    alt = f"{PHOTOS[0]} and {PHOTOS[2]} mixed by {label}"
    return (f'<figure><img src="_static/{file}" alt="{alt}" width="{SIZE}" height="{SIZE}">'
            f"<figcaption>{label} <span>{mix.lam[0]:.2f}</span></figcaption></figure>")


def tiles(x):
    shown = METHODS | dict(smoothmix="SmoothMix")
    return '<div class="tiles">' + "".join(tile(name, label, x) for name, label in shown.items()) + "</div>"
