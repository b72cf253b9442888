const express = require('express');
const app = express();
app.get('/', (_request, response) => response.send('hello from node'));
app.get('/health', (_request, response) => response.sendStatus(200));
module.exports = app;
if (require.main === module) app.listen(process.env.PORT);
