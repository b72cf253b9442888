document.querySelector('#app').textContent = `asking ${import.meta.env.VITE_API_URL}`;
