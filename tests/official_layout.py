"""The reverse of mmdat's checkpoint conversion, to write files of the official layout."""

import re

TABLE = 'relative_position_bias_table'


def to_official(state_dict):
    """Our backbone's state dict with the keys and shapes of the official release.

    A single output norm becomes the classification model's.
    """
    dense = any(key.startswith('norm0.') for key in state_dict)
    return dict(_rename(key, value, state_dict, dense) for key, value in state_dict.items())


def _rename(key, value, state_dict, dense):
    key = re.sub(r'^stem\.([14])\.', r'patch_proj.\1.norm.', key)
    key = re.sub(r'^stem\.', 'patch_proj.', key)
    key = re.sub(r'^downsamples\.(\d)\.1\.', r'down_projs.\1.1.norm.', key)
    key = re.sub(r'^downsamples\.', 'down_projs.', key)
    key = re.sub(r'^norm(\d)\.', r'norms.\1.norm.' if dense else 'cls_norm.norm.', key)
    match = re.match(r'^(stages\.\d+)\.blocks\.(\d+)\.(norm[12]|lpu|mlp|mixer)\.(.*)', key)
    if not match:
        return key, value
    stage, block, part, rest = match[1], int(match[2]), match[3], match[4]
    if part == 'lpu':
        return f'{stage}.local_perception_units.{block}.{rest}', value
    if part == 'mlp':
        convolutional = 'stages.0.blocks.0.mlp.dwconv.weight' in state_dict
        rest = rest.replace('dwconv.', 'dwc.')
        rest = re.sub(r'^fc([12])\.', r'linear\1.0.' if convolutional else r'chunk.linear\1.', rest)
        is_conv = convolutional and value.dim() == 2
        return f'{stage}.mlps.{block}.{rest}', value[..., None, None] if is_conv else value
    if part == 'mixer':
        mixer = f'{stage}.blocks.{block}.mixer.'
        if mixer + 'proj_q.weight' in state_dict:
            rest = re.sub(r'^offset_net\.1\.', 'conv_offset.1.norm.', rest).replace('offset_net.', 'conv_offset.')
            rest = rest.replace(TABLE, 'rpe_table')
            value = value[..., None, None] if value.dim() == 2 and not rest.startswith('bias_mlp') else value
            rest = re.sub(r'^bias_(conv|mlp)\.', 'rpe_table.', rest)
        elif state_dict[mixer + TABLE].dim() == 3:
            rest = rest.replace('proj_out.', 'proj.').replace(TABLE, 'rpb')
        else:
            rest = rest.replace('qkv.', 'proj_qkv.')
        return f'{stage}.attns.{block}.{rest}', value
    return f'{stage}.layer_norms.{2 * block + int(part[-1]) - 1}.norm.{rest}', value
