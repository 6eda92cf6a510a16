package sdk_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

// Branch off the default branch, with a compute, and wait until it answers.
func Example() {
	server := httptest.NewServer(http.HandlerFunc(exampleServer)) // yours is at http://127.0.0.1:8432
	defer server.Close()

	client, err := sdk.New(sdk.Options{BaseURL: server.URL, APIKey: "napi_example"})
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	made, err := client.CreateBranch(ctx, "brisk-ember-81697531", sdk.BranchCreateRequest{
		Branch:    &sdk.BranchCreate{Name: new("try-index")},
		Endpoints: &[]sdk.BranchCreateEndpoint{{Type: api.ReadWrite}},
	})
	if sdk.IsConflict(err) {
		log.Fatal("there is a branch of that name")
	}
	if err != nil {
		log.Fatal(err)
	}
	if _, err := client.WaitForOperations(ctx, made.Operations, nil); err != nil {
		log.Fatal(err)
	}
	for branch, err := range client.Branches(ctx, "brisk-ember-81697531", sdk.BranchFilter{}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(branch.Name, branch.CurrentState)
	}
	// Output:
	// try-index ready
	// main ready
}

func exampleServer(w http.ResponseWriter, r *http.Request) {
	const op = `{"id": "74bde94f-b78c-8d5f-08b7-9affd2b49c12", "project_id": "brisk-ember-81697531", "action": "create_branch", "status": %q}`
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.Method == http.MethodPost:
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"branch": {"name": "try-index"}, "operations": [`+op+`]}`, "running")
	case r.URL.Path == "/api/v2/projects/brisk-ember-81697531/branches":
		fmt.Fprint(w, `{"branches": [{"name": "try-index", "current_state": "ready"}, {"name": "main", "current_state": "ready"}]}`)
	default:
		fmt.Fprintf(w, `{"operation": `+op+`}`, "finished")
	}
}
