module.exports = (value) => `library ${value}`;
