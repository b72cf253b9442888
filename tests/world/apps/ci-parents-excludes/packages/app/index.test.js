throw new Error('not for the image');
