package e2e

import (
	"strings"
	"testing"

	"github.com/boughdb/bough/sdk"
)

// TestOwnLibraries gives one endpoint libraries of its own, which a change of the project's leaves alone, and takes them back.
func TestOwnLibraries(t *testing.T) {
	s := start(t)
	p := s.project(t)
	other := p.branch(t, "")
	preloads := func(what, uri, want string) {
		t.Helper()
		if got := value[string](t, s.connect(t, uri), "show shared_preload_libraries"); got != want {
			t.Errorf("%s: %q is preloaded, want %q", what, got, want)
		}
	}
	path := "/projects/" + p.ID + "/endpoints/" + p.Endpoint
	pid := s.postmaster(t, p.Branch)
	r := s.raw(t, "", "PATCH", path, `{"endpoint":{"settings":{"preload_libraries":{"enabled_libraries":["no_such"]}}}}`)
	if r.status != 400 || !strings.Contains(r.message, "no_such") || s.postmaster(t, p.Branch) != pid {
		t.Errorf("%d %s", r.status, r.message)
	}
	own := `{"settings":{"preload_libraries":{"use_defaults":false,"enabled_libraries":["auto_explain"]},"pg_settings":{"auto_explain.log_min_duration":"1h"}}}`
	if ops := p.patch(t, own); actions(ops) != "suspend_compute start_compute" {
		t.Errorf("own libraries: %s", actions(ops))
	}
	preloads("own", p.URI, "auto_explain")
	preloads("another endpoint", other.URI, "pg_stat_statements")
	if ops := p.patch(t, own); len(ops) > 0 {
		t.Errorf("the same again: %s", actions(ops))
	}
	p.patchProject(t, `{"settings":{"preload_libraries":{"use_defaults":false,"enabled_libraries":[]}}}`)
	preloads("after a change of the project's", p.URI, "auto_explain")
	preloads("another endpoint", other.URI, "")
	e, err := s.Endpoint(t.Context(), p.ID, p.Endpoint)
	if err != nil || e.Settings.PreloadLibraries == nil || len(*e.Settings.PreloadLibraries.EnabledLibraries) != 1 {
		t.Errorf("%+v, %v", e, err)
	}
	s.Restart()
	p.suspend(t, p.Endpoint)
	preloads("after a sleep", p.URI, "auto_explain")
	if ops := p.patch(t, `{"settings":{"preload_libraries":{},"pg_settings":{}}}`); actions(ops) != "suspend_compute start_compute" {
		t.Errorf("the project's again: %s", actions(ops))
	}
	preloads("the project's again", p.URI, "")
	if e, err = s.Endpoint(t.Context(), p.ID, p.Endpoint); err != nil || e.Settings.PreloadLibraries != nil {
		t.Errorf("%+v, %v", e, err)
	}
	made, err := s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{Endpoints: &[]sdk.BranchCreateEndpoint{{
		Type: "read_write", Settings: &sdk.EndpointSettings{PreloadLibraries: &sdk.PreloadLibraries{EnabledLibraries: &[]string{"auto_explain"}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	s.wait(t, made.Operations)
	preloads("made with a branch", (*made.ConnectionUris)[0].ConnectionURI, "pg_stat_statements,auto_explain")
	s.settled(t)
}
