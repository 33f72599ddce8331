"""The page of deformable attention: one file that needs nothing else, whose numbers are the layers' own."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch
from in_process import call_tool
from paths import DEMO

from mmdat import DAT
from mmdat.visualization import View, attention_page, layer_names, record_attention

SIZE = (96, 130)


def backbone(arch):
    """A backbone whose points move and whose queries prefer some keys."""
    model = DAT(arch, img_size=64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(('offset_net.3.weight', 'bias_table', 'proj_q.weight', 'proj_k.weight')):
                parameter.normal_(std=0.3)
    return model.requires_grad_(False)


def view_of(model, size=SIZE):
    picture = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    return View(picture, size, model.arch.conv_stem)


def data_of(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])


def array(text):
    ((dtype, code),) = text.items()
    return np.frombuffer(base64.b64decode(code), np.dtype(dtype).newbyteorder('<'))


def test_numbers_are_those_of_the_layers(nano):
    model, inputs = backbone(nano).train(), torch.randn(1, 3, *SIZE)
    view = view_of(model)
    data = data_of(attention_page(model, inputs, view))
    assert model.training
    with torch.no_grad(), record_attention(model.eval()) as records:
        model(inputs)
    assert [layer['name'] for layer in data['layers']] == layer_names(model)
    for layer in data['layers']:
        attention, stride = records[layer['name']][0], 4 * 2 ** int(layer['name'].split('.')[1])
        rows, cols = attention.query.shape[2:]
        assert layer['queries'] == [rows, cols]  # so small a map is kept whole
        views = 1 + layer['groups'] + layer['heads']
        shape = views, rows, cols, layer['most']
        index, weight = array(layer['index']).reshape(shape), array(layer['weight']).reshape(shape) / 65535
        at = array(layer['at']).reshape(rows, cols, 2)
        position = array(layer['position']).reshape(-1, 2)
        expected = view.locate(attention.points.position[0], stride).flatten(0, -2).flip(-1) + 0.5
        assert np.allclose(position, expected, atol=1e-3)
        for row, col in ((0, 0), (rows - 1, cols // 2)):
            assert view.cell(at[row, col][::-1] - 0.5, stride) == (row, col)
            own = attention.of_query(row, col)[0].flatten(1)
            heads = attention.weights(row, row + 1)[0, :, col]
            groups = own * layer['groups']
            for number, weights in enumerate((own.flatten(), *groups, *heads)):
                top = weights.sort(descending=True)
                assert np.allclose(weight[number, row, col], top.values[: layer['most']], atol=1e-5)
                group = 0 if number == 0 else number - 1
                if number > layer['groups']:
                    group = (number - 1 - layer['groups']) // (layer['heads'] // layer['groups'])
                found = index[number, row, col] - group * heads.shape[1]
                assert torch.allclose(weights[found.astype(int)], top.values[: layer['most']], atol=1e-6)
        heat = array(layer['heat']['values']).reshape(layer['heat']['size'])
        assert heat.max() == 255 and heat.min() >= 1  # all of it is inside of the picture


def test_the_page_is_one_file_that_asks_for_nothing(nano):
    """No address, no file, and a policy that would refuse both; and a title is text, whatever is in it."""
    model = backbone(nano)
    title = '</script><script src="https://a.b/c.js">"DATA"'
    page = attention_page(model, torch.randn(1, 3, *SIZE), view_of(model), title=title)
    assert data_of(page)['title'] == title

    class Parser(HTMLParser):
        scripts = 0

        def handle_starttag(self, tag, attributes):
            assert tag not in ('link', 'iframe', 'object', 'embed', 'base')
            assert not {'src', 'href', 'srcset', 'action'} & {name for name, _ in attributes}
            self.scripts += tag == 'script'

    parser = Parser()
    parser.feed(page)
    assert parser.scripts == 2
    code = page.replace(json.dumps(title).replace('<', '\\u003c'), '')
    assert not re.search(r'https?:|//\w+\.\w+|\bfetch\(|XMLHttpRequest|\bimport\b|url\(', code)
    assert "default-src 'none'" in page


def test_the_page_starts_at_a_query_and_holds_chosen_layers(nano):
    model = backbone(nano)
    layer = layer_names(model)[-1]
    page = attention_page(model, torch.randn(1, 3, *SIZE), view_of(model), query=(20.0, 30.0), layers=[layer])
    data = data_of(page)
    assert data['query'] == [30.5, 20.5] and [found['name'] for found in data['layers']] == [layer]


def test_large_pictures_and_maps_are_kept_smaller(nano, monkeypatch):
    model = backbone(nano)
    monkeypatch.setattr('mmdat.visualization.page.ATTENTION_BYTES', 20_000)
    inputs = torch.randn(1, 3, *SIZE)
    view = View(np.zeros((2000, 2800, 3), np.uint8), SIZE, model.arch.conv_stem, scale=(96 / 2000, 130 / 2800))
    page = attention_page(model, inputs, view)
    data = data_of(page)
    assert (data['picture']['width'], data['picture']['height'], data['scale']) == (1400, 1000, 0.5)
    assert sum(len(array(layer[name])) * 2 for layer in data['layers'] for name in ('index', 'weight')) <= 20_000
    for layer in data['layers']:
        at = array(layer['at']).reshape(-1, 2)
        assert len(at) == np.prod(layer['queries']) and (at >= 0).all() and (at <= (1400, 1000)).all()


def test_tool(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('photo.png', np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    config = DEMO / 'maskrcnn_datppnano_shapes.py'
    arguments = ['photo.png', '--config', config, '--query', '30,40', '--html', 'pages/photo.html']
    call_tool(monkeypatch, 'visualize_deformation', *arguments)
    assert capsys.readouterr().out.endswith('pages/photo.html\n')
    assert not (tmp_path / 'work_dirs').exists()
    data = data_of((tmp_path / 'pages/photo.html').read_text())
    assert data['title'] == 'photo.png (untrained weights)' and data['query'] == [30.5, 40.5]


@pytest.mark.slow
def test_no_page_of_an_image_of_detection_is_over_10_megabytes():
    """The largest model, whose attention is bounded, and a picture of noise, which is the hardest to compress."""
    model = DAT('base++')
    page = attention_page(model, torch.randn(1, 3, 800, 1344), view_of(model, (800, 1344)))
    print(f'{len(page) / 1e6:.1f} MB')
    assert 5e6 < len(page) < 10e6
    assert all(np.prod(layer['queries']) > 200 for layer in data_of(page)['layers'])


@pytest.fixture
def browser():
    """Chromium, of the system or of playwright."""
    api = pytest.importorskip('playwright.sync_api')
    with api.sync_playwright() as playwright:
        path = shutil.which('chromium') or shutil.which('google-chrome')
        try:
            chromium = playwright.chromium.launch(executable_path=path, args=['--no-sandbox'])
        except api.Error as error:
            pytest.skip(f'no Chromium: {error.message.splitlines()[0]}')
        yield chromium
        chromium.close()


@pytest.mark.slow
@pytest.mark.parametrize('device', ['desktop', 'phone'])
def test_in_a_browser(browser, device, nano, tmp_path):
    """Pointer or finger, keyboard, slider, switches; what is said is what the layers compute."""
    model, inputs = backbone(nano), torch.randn(1, 3, *SIZE)
    view = view_of(model)
    (tmp_path / 'page.html').write_text(attention_page(model, inputs, view))
    with torch.no_grad(), record_attention(model.eval()) as records:
        model(inputs)
    names = layer_names(model)

    size = dict(width=1280, height=900) if device == 'desktop' else dict(width=360, height=740)
    touch = device == 'phone'
    page = browser.new_context(viewport=size, has_touch=touch, color_scheme='dark' if touch else 'light').new_page()
    faults, requests = [], []
    page.on('pageerror', lambda error: faults.append(str(error)))
    page.on('console', lambda message: faults.append(message.text) if message.type == 'error' else None)
    page.on('request', lambda request: requests.append(request.url))
    page.goto((tmp_path / 'page.html').as_uri())
    says = lambda: page.inner_text('#says')  # noqa: E731
    page.wait_for_function("document.getElementById('says').textContent")
    canvas = page.locator('canvas')

    def look():
        return canvas.screenshot()

    def expected(layer, row, col, head=None):
        attention = records[layer][0]
        weights = attention.of_query(row, col) if head is None else attention.weights(row, row + 1)[0, head, col]
        return f'{100 * float(weights.max()):.1f} %'

    # Pointing at the middle of a cell.
    attention, stride = records[names[0]][0], 4 * 2 ** int(names[0].split('.')[1])
    rows, cols = attention.query.shape[2:]
    row, col = rows - 2, 1
    place = view.locate(torch.tensor([row / (rows - 1), col / (cols - 1)]) * 2 - 1, stride)
    box = canvas.bounding_box()
    x, y = (float(p + 0.5) / side * box[name] for p, side, name in zip(place.flip(0), SIZE[::-1], ('width', 'height')))
    before = look()
    if touch:
        canvas.tap(position=dict(x=x, y=y))
    else:
        canvas.hover(position=dict(x=x, y=y))
    assert f'Most attended key: {expected(names[0], row, col)} at' in says()
    assert look() != before

    # Keys move the query, within the map.
    page.keyboard.press('ArrowRight')
    assert expected(names[0], row, col + 1) in says()
    for _ in range(rows + 1):
        page.keyboard.press('ArrowUp')
    assert expected(names[0], 0, col + 1) in says()

    # Heads by their list, and the next one by a key.
    page.select_option('#heads', label='head 1')
    assert expected(names[0], 0, col + 1, head=0) in says()
    heads = attention.num_heads
    if heads > 1:
        page.focus('canvas')
        page.keyboard.press('h')
        assert expected(names[0], 0, col + 1, head=1) in says()

    # Layers by the slider and by keys.
    page.locator('#layer').fill(str(len(names) - 1))
    assert page.inner_text('#name') == names[-1]
    page.focus('canvas')
    page.keyboard.press('PageUp')
    assert page.inner_text('#name') == names[-2]
    page.keyboard.press('PageDown')

    # Switches.
    plain = look()
    page.check('#offsets')
    arrows = look()
    page.check('#received')
    assert len({plain, arrows, look()}) == 3 and 'times the mean attention received' in says()
    page.focus('canvas')
    page.keyboard.press('o')
    page.keyboard.press('r')
    assert look() == plain

    # Nothing is cut off at the side, targets are large enough for a finger, and the dark is dark.
    assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth')
    assert all(label.bounding_box()['height'] >= 44 for label in page.locator('label').all())
    channels = [int(c) for c in re.findall(r'\d+', page.evaluate('getComputedStyle(document.body).backgroundColor'))]
    assert max(channels[:3]) < 50 if touch else min(channels[:3]) > 200
    assert faults == [] and [url for url in requests if not url.startswith(('file:', 'data:'))] == []
