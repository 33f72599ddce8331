"""The backbones and the channels of their four maps, for necks and heads."""

dat_t = dict(type='mmdat.DAT', arch='tiny')
dat_t_channels = [96, 192, 384, 768]

dat_s = dict(type='mmdat.DAT', arch='small')
dat_s_channels = [96, 192, 384, 768]

dat_b = dict(type='mmdat.DAT', arch='base')
dat_b_channels = [128, 256, 512, 1024]

datp_t = dict(type='mmdat.DAT', arch='tiny+')
datp_t_channels = [64, 128, 256, 512]

datpp_t = dict(type='mmdat.DAT', arch='tiny++')
datpp_t_channels = [64, 128, 256, 512]

datpp_s = dict(type='mmdat.DAT', arch='small++')
datpp_s_channels = [96, 192, 384, 768]

datpp_b = dict(type='mmdat.DAT', arch='base++')
datpp_b_channels = [128, 256, 512, 1024]
