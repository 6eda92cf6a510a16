package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/boughdb/bough/api"
)

// node returns the program that runs the clients from npm. It skips without one that can, or without the clients.
func node(t *testing.T) string {
	t.Helper()
	if spec == nil {
		t.Skipf("needs the clients from npm in %s: scripts/deps.sh test installs them where npm is", clients())
	}
	dir, err := filepath.Abs(clients())
	must(t, err)
	for _, path := range []string{filepath.Join(dir, "node", "node_modules", ".bin", "node"), "node"} { // the first: where the system's is too old
		var major, minor int
		out, err := exec.CommandContext(t.Context(), path, "--version").Output()
		if n, _ := fmt.Sscanf(string(out), "v%d.%d", &major, &minor); err == nil && n == 2 && (major > 20 || major == 20 && minor >= 19) {
			return path
		}
	}
	t.Skip("needs node 20.19 or newer: scripts/deps.sh test installs it where npm is")
	return ""
}

// through puts a proxy in front of a server, which watches what a client sees.
func (s *server) through(t *testing.T) (w *watch, baseURL string) {
	t.Helper()
	to, err := url.Parse(s.admin.APIURL)
	must(t, err)
	w = &watch{published: spec, next: own.next, seen: map[string]bool{}}
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: to.Scheme, Host: to.Host}) },
		Transport: w,
	})
	t.Cleanup(proxy.Close)
	return w, proxy.URL + to.Path
}

// runNode runs a program of node with nothing of this process' environment but the PATH.
func runNode(t *testing.T, dir string, env []string, node string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, args...)
	cmd.Dir, cmd.Env = dir, append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}, env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// builtOperations are the ids of what the server says that it can do.
func builtOperations(t *testing.T) (ids []string) {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI())
	must(t, err)
	for _, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			ids = append(ids, op.OperationID)
		}
	}
	slices.Sort(ids)
	return ids
}

// TestAPIClient has the cloud's own client library call every operation that is built.
func TestAPIClient(t *testing.T) {
	node := node(t)
	s := start(t)
	w, base := s.through(t)
	other, member := s.person(t, "other"), s.person(t, "member")
	theirs, org := s.organization(t, member), s.organization(t, "")
	_, err := s.bough("admin", "orgs", "set-member", "--org-id", org, "--email", "member@example.com", "--role", "member")
	must(t, err)
	dir, err := filepath.Abs(clients())
	must(t, err)
	script, err := filepath.Abs("clients/api-client.mjs")
	must(t, err)
	major := ""
	if n, ok := dumpable(t); ok {
		major = strconv.Itoa(n)
	}
	out, errs, err := runNode(t, t.TempDir(), []string{
		"CLIENTS=" + dir, "BASE_URL=" + base, "API_KEY=" + s.admin.APIKey, "ORG_ID=" + org,
		"OTHER_KEY=" + other, "MEMBER_KEY=" + member, "MEMBER_ORG_ID=" + theirs, "PG_MAJOR=" + major,
	}, node, script)
	if err != nil {
		t.Errorf("api-client.mjs: %v\n%s%s", err, out, errs)
	}
	for _, id := range builtOperations(t) {
		if !slices.Contains(w.operations(), id) && (major != "" || id != "getProjectBranchSchemaComparison") {
			t.Errorf("no call of %s succeeded: add one to clients/api-client.mjs", id)
		}
	}
	if t.Failed() { // there may be projects that the admin does not see
		return
	}
	if major != "" { // else it proves less than it could
		proved["api-client"] = w.operations()
	}
	s.settled(t)
}
