// Blends two photographs with the library's masks; MIX comes from mix-data.js.
(() => {
  const $ = id => document.getElementById("mix-" + id), n = MIX.size, form = document.getElementById("mix");
  const pixels = (draw) => { // RGBA of an n x n picture
    const c = Object.assign(document.createElement("canvas"), { width: n, height: n }), g = c.getContext("2d", { willReadFrequently: true });
    draw(g);
    return g.getImageData(0, 0, n, n);
  };
  const load = src => new Promise(done => { const i = new Image(); i.onload = () => done(i); i.src = src; });
  const loaded = {}, get = src => loaded[src] ??= load(src);
  const show = (id, data) => { const c = $("view-" + id); c.width = c.height = n; c.getContext("2d").putImageData(data, 0, 0); };
  const fill = (select, names, chosen) => { select.replaceChildren(...names.map((t, i) => new Option(t, i))); select.value = chosen; };

  const keys = Object.keys(MIX.methods), names = MIX.images.map(i => i.name);
  fill($("a"), names, 0); fill($("b"), names, 2); fill($("method"), keys.map(k => MIX.methods[k].name), 1);

  let turn = 0;
  async function update() {
    const mine = ++turn, m = MIX.methods[keys[$("method").value]], col = +$("lam").value;
    const chance = m.by === "seed" && m.lam.length > 1;
    $("seed").disabled = !chance;
    if ($("seed").length !== (chance ? m.lam.length : 1)) fill($("seed"), chance ? m.lam.map((_, i) => i) : ["none"], 0);
    const row = m.by !== "seed" ? +$(m.by).value : chance ? +$("seed").value : 0, lam = m.lam[row][col];
    const a = MIX.images[$("a").value], b = MIX.images[$("b").value];
    const [ia, ib, sheet] = await Promise.all([get(a.src), get(b.src), m.masks ? get(m.masks) : null]);
    if (mine !== turn) return;
    const w = pixels(g => {
      if (sheet) g.drawImage(sheet, col * n, row * n, n, n, 0, 0, n, n);
      else { const v = Math.round(255 * lam); g.fillStyle = `rgb(${v},${v},${v})`; g.fillRect(0, 0, n, n); }
    });
    const box = m.box && m.box[row][col];
    const pa = pixels(g => g.drawImage(ia, 0, 0, n, n)), pb = pixels(g => g.drawImage(ib, 0, 0, n, n));
    const partner = box ? pixels(g => { g.imageSmoothingQuality = "high"; g.drawImage(ib, box[1], box[0], box[3], box[2]); }) : pb; // top, left, height, width
    const x = new ImageData(n, n);
    for (let i = 0; i < x.data.length; i++) x.data[i] = i % 4 === 3 ? 255 : (w.data[i] * pa.data[i] + (255 - w.data[i]) * partner.data[i]) / 255;
    show("a", pa); show("b", pb); show("w", w); show("x", x);
    $("asked").textContent = MIX.lams[col].toFixed(1);
    $("lam").setAttribute("aria-valuetext", MIX.lams[col].toFixed(1));
    $("bar-a").style.flexGrow = lam; $("bar-b").style.flexGrow = 1 - lam;
    $("label").textContent = a === b ? `Label: ${a.name}` : `Label: ${lam.toFixed(3)} ${a.name} + ${(1 - lam).toFixed(3)} ${b.name}`;
    form.dataset.drawn = mine;
  }
  form.addEventListener("input", update);
  update();
})();
