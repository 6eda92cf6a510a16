package service

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/boughdb/bough/api/apitest"
	"github.com/boughdb/bough/internal/compute/local"
)

// fuzzServer runs a whole server in this process, so that the fuzzer sees what a request reaches, and ends it with the test.
func fuzzServer(f *testing.F) AdminFile {
	f.Helper()
	base, err := os.MkdirTemp("", "bough-fuzz-")
	if err != nil {
		f.Fatal(err)
	}
	if err := os.Chmod(base, 0o755); err != nil { // the computes' user must pass
		f.Fatal(err)
	}
	dir := filepath.Join(base, "data")
	ctx, stop := context.WithCancel(f.Context())
	ready, ended := make(chan *Server, 1), make(chan error, 1)
	log := slog.New(slog.DiscardHandler)
	go func() {
		ended <- Run(ctx, Config{
			DataDir: dir, HTTPListen: "127.0.0.1:0", PGListen: "127.0.0.1:0", Storage: "copy", Domain: "db.localhost", Region: "local",
			Extensions: "default", Cgroups: cgroupsOff, HostReserve: 256 << 20, PoolReserve: 256 << 20, Handshake: time.Second,
			ReconcileEvery: time.Hour, ReconcilePatience: time.Hour, StopComputes: true,
		}, log, func(s *Server) { ready <- s })
	}()
	f.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			f.Error(err)
		}
		if err := Down(context.WithoutCancel(ctx), dir, log); err != nil {
			f.Error(err)
		}
		if err := os.RemoveAll(base); err != nil {
			f.Error(err)
		}
	})
	select {
	case s := <-ready:
		return s.Admin()
	case err := <-ended:
		ended <- err
		f.Fatal(err)
	}
	return AdminFile{}
}

// FuzzRequest sends what the fuzzer makes of one request for each operation. Without -fuzz these are sent as they are:
//
//	go test ./internal/service -run xxx -fuzz FuzzRequest -parallel 1 -fuzzminimizetime 0x
//
// Where the server is in another state each time there is nothing to minimize, and the fuzzer would kill a worker that tries
// for too long, whose computes outlive it. A worker that is cut off leaves /tmp/bough-fuzz-*: end it with bough down.
func FuzzRequest(f *testing.F) {
	if _, err := local.Credential(""); err != nil {
		f.Skip("needs an OS user for computes: ", err)
	}
	gen, err := apitest.New(1)
	if err != nil {
		f.Fatal(err)
	}
	for _, r := range gen.Valid() {
		f.Add(r.Method, r.Path, r.Header.Get("Content-Type"), r.Body)
	}
	admin := fuzzServer(f)
	known := map[string]string{"org_id": admin.OrgID, "role_name": "neondb_owner", "database_name": "neondb"}
	send := func(t *testing.T, r apitest.Request) (int, []byte) {
		status, header, body, err := r.Fill(known).Send(t.Context(), admin.APIURL, admin.APIKey)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			t.Fatalf("%s %q %q: no answer", r.Method, r.Path, r.Body)
		case err != nil:
			t.Skip(err) // not even HTTP
		}
		if problem := apitest.Judge(r, status, header, body); problem != "" {
			t.Errorf("%s %q %q: %s\nanswer %d: %.2000s", r.Method, r.Path, r.Body, problem, status, body)
		}
		return status, body
	}
	// learn takes the ids of what a call has made.
	learn := func(body []byte) {
		var made struct {
			Project, Branch struct{ ID string }
			Endpoints       []struct{ ID string }
		}
		if json.Unmarshal(body, &made) != nil {
			return
		}
		known["project_id"], known["branch_id"] = made.Project.ID, made.Branch.ID
		if len(made.Endpoints) > 0 {
			known["endpoint_id"] = made.Endpoints[0].ID
		}
	}
	f.Fuzz(func(t *testing.T, method, path, mediaType string, body []byte) {
		if known["project_id"] == "" {
			if status, made := send(t, apitest.Request{Method: "POST", Path: "/projects", Header: http.Header{}}.WithJSON(`{"project":{}}`)); status == http.StatusCreated {
				learn(made)
			}
		}
		r := apitest.Request{Method: method, Path: path, Header: http.Header{}, Body: body}
		if mediaType != "" {
			r.Header.Set("Content-Type", mediaType)
		}
		status, answer := send(t, r)
		if status >= 300 {
			return
		}
		// What a request made goes, and what it deleted comes back.
		var made struct{ Project, Branch struct{ ID string } }
		switch {
		case method == "DELETE" && strings.HasPrefix(path, "/projects/"):
			known["project_id"] = ""
		case method == "POST" && json.Unmarshal(answer, &made) == nil && status == http.StatusCreated:
			if id := made.Project.ID; id != "" && id != known["project_id"] {
				send(t, apitest.Request{Method: "DELETE", Path: "/projects/" + id, Header: http.Header{}})
			}
			if id := made.Branch.ID; id != "" {
				send(t, apitest.Request{Method: "DELETE", Path: "/projects/{project_id}/branches/" + id, Header: http.Header{}})
			}
		}
	})
}
