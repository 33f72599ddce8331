# DAT-S. Necks and heads take their input channels from here.
arch = 'small'
channels = [96, 192, 384, 768]
