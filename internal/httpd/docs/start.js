// Shows the contract of the server that this page came from, and sends what is tried to that server, by whatever name it was
// reached. The key stays in this page's memory.
"use strict";
fetch("/api/v2/openapi.json").then((answer) => answer.json()).then((contract) => {
  contract.servers = [{ url: location.origin + "/api/v2" }];
  window.ui = SwaggerUIBundle({
    dom_id: "#reference",
    spec: contract,
    deepLinking: true,
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
    displayOperationId: true,
    displayRequestDuration: true,
    filter: true,
    persistAuthorization: false,
    tryItOutEnabled: true,
    validatorUrl: null,
  });
}).catch((problem) => {
  document.getElementById("reference").textContent = "The contract cannot be loaded: " + problem;
});
