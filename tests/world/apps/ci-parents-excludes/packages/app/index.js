console.log(require('library')(require('ms')('1s')));
