package sdk_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

func serve(t *testing.T, h http.HandlerFunc, change ...func(*sdk.Options)) *sdk.Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	opts := sdk.Options{BaseURL: srv.URL, APIKey: "napi_test", RetryWait: time.Millisecond, PollWait: time.Millisecond}
	for _, f := range change {
		f(&opts)
	}
	c, err := sdk.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	reply(w, status, map[string]string{"code": code, "message": message, "request_id": "req-1"})
}

func TestNewChecksOptions(t *testing.T) {
	for _, o := range []sdk.Options{
		{BaseURL: "127.0.0.1:8432", APIKey: "k"},
		{BaseURL: "ftp://x", APIKey: "k"},
		{BaseURL: "http://", APIKey: "k"},
		{BaseURL: "http://x"},
		{BaseURL: "http://x", APIKey: "napi_secret\n"},
	} {
		if _, err := sdk.New(o); err == nil {
			t.Errorf("New(%+v) passed", o)
		} else if strings.Contains(err.Error(), "napi_secret") {
			t.Errorf("the error quotes the key: %v", err)
		}
	}
}

func TestRequestCarriesKeyAgentAndBasePath(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v2/projects/p-1" || r.Header.Get("Authorization") != "Bearer napi_test" ||
			r.Header.Get("User-Agent") != "bough-go" {
			t.Errorf("request: %s %v", r.URL, r.Header)
		}
		reply(w, 200, map[string]any{"project": map[string]any{"id": "p-1"}})
	})
	p, err := c.Project(t.Context(), "p-1")
	if err != nil || p.ID != "p-1" {
		t.Fatalf("%+v, %v", p, err)
	}
}

func TestErrors(t *testing.T) {
	cases := map[int]func(error) bool{
		400: sdk.IsInvalid, 422: sdk.IsInvalid, 413: sdk.IsInvalid, 401: sdk.IsUnauthorized, 403: sdk.IsForbidden,
		404: sdk.IsNotFound, 410: sdk.IsNotFound, 409: sdk.IsConflict, 412: sdk.IsPrecondition, 423: sdk.IsLocked,
		429: sdk.IsRateLimited, 503: sdk.IsUnavailable, 501: sdk.IsNotImplemented,
	}
	for status, is := range cases {
		c := serve(t, func(w http.ResponseWriter, r *http.Request) { refuse(w, status, "SOME_CODE", "do this instead") },
			func(o *sdk.Options) { o.MaxRetries = -1 })
		_, err := c.Branch(t.Context(), "p", "b")
		e, ok := errors.AsType[*sdk.Error](err)
		if !ok || !is(err) || e.Status != status || e.Code != "SOME_CODE" || e.Message != "do this instead" || e.RequestID != "req-1" {
			t.Errorf("%d: %#v", status, err)
		}
		for other, isOther := range cases {
			if fmt.Sprintf("%p", isOther) != fmt.Sprintf("%p", is) && isOther(err) {
				t.Errorf("%d answers to the question for %d", status, other)
			}
		}
	}
}

func TestErrorFromSomethingInBetween(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Request-Id", "from-header")
		http.Error(w, "<html>bad gateway", http.StatusBadGateway)
	})
	_, err := c.Me(t.Context())
	e, ok := errors.AsType[*sdk.Error](err)
	if !ok || e.Status != 502 || e.RequestID != "from-header" || !strings.Contains(e.Message, "Bad Gateway") {
		t.Fatalf("%#v", err)
	}

	c = serve(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>welcome") })
	if _, err := c.Me(t.Context()); err == nil || !strings.Contains(err.Error(), "BaseURL") {
		t.Fatalf("an HTML page passed as an answer: %v", err)
	}
}

func TestEmptyIDsNeverReachTheServer(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { t.Errorf("reached: %s %s", r.Method, r.URL) })
	if _, err := c.DeleteProject(t.Context(), ""); err == nil {
		t.Error("DeleteProject passed")
	}
	if _, err := c.DeleteDatabase(t.Context(), "p", "b", ".."); err == nil {
		t.Error("DeleteDatabase passed")
	}
	if _, err := sdk.All(c.Branches(t.Context(), "", sdk.BranchFilter{})); err == nil {
		t.Error("Branches passed")
	}
}

func TestRetriesAPostWithItsBody(t *testing.T) {
	for _, status := range []int{423, 429, 503} {
		var calls atomic.Int32
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if !strings.Contains(string(body), `"name":"one"`) {
				t.Errorf("attempt %d has body %q", calls.Load(), body)
			}
			if calls.Add(1) < 3 {
				refuse(w, status, "LATER", "later")
				return
			}
			reply(w, 201, map[string]any{"project": map[string]any{"id": "p-1"}})
		})
		if _, err := c.CreateProject(t.Context(), sdk.ProjectCreate{Name: new("one")}); err != nil || calls.Load() != 3 {
			t.Errorf("%d: %v after %d calls", status, err, calls.Load())
		}
	}
}

func TestRetryAfterIsHonoured(t *testing.T) {
	var first time.Time
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if first.IsZero() {
			first = time.Now()
			w.Header().Set("Retry-After", "1")
			refuse(w, 429, "RATE", "slow down")
			return
		}
		if d := time.Since(first); d < time.Second {
			t.Errorf("came back after %v", d)
		}
		reply(w, 200, map[string]any{"id": "u"})
	})
	if _, err := c.Me(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRetriesEnd(t *testing.T) {
	var calls atomic.Int32
	after := ""
	h := func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		w.Header().Set("Retry-After", after)
		refuse(w, 503, "SPACE", "no room")
	}
	c := serve(t, h, func(o *sdk.Options) { o.MaxRetries = 2 })
	if _, err := c.Me(t.Context()); !sdk.IsUnavailable(err) || calls.Load() != 3 {
		t.Errorf("%v after %d calls", err, calls.Load())
	}
	// Longer than anyone waits: the answer itself, at once.
	calls.Store(0)
	after = "3600"
	_, err := c.Me(t.Context())
	if e, ok := errors.AsType[*sdk.Error](err); !ok || e.RetryAfter != time.Hour || calls.Load() != 1 {
		t.Errorf("%#v after %d calls", err, calls.Load())
	}
	// Longer than the caller has: the same.
	after = "20"
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := c.Me(ctx); !sdk.IsUnavailable(err) {
		t.Error(err)
	}
}

func TestAmbiguousNetworkErrors(t *testing.T) {
	var calls atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) > 1 {
			reply(w, 200, map[string]any{"id": "u"})
			return
		}
		conn, _, _ := w.(http.Hijacker).Hijack()
		conn.Close()
	}, func(o *sdk.Options) {
		// Without keep-alive net/http does not retry by itself.
		o.HTTPClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	})
	if _, err := c.CreateProject(t.Context(), sdk.ProjectCreate{}); err == nil || calls.Load() != 1 {
		t.Errorf("POST: %v after %d calls; it may have been carried out", err, calls.Load())
	}
	calls.Store(0)
	if _, err := c.Me(t.Context()); err != nil || calls.Load() != 2 {
		t.Errorf("GET: %v after %d calls", err, calls.Load())
	}
}

func TestRefusedConnectionIsReportedAtOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	c, err := sdk.New(sdk.Options{BaseURL: "http://" + l.Addr().String(), APIKey: "k", RetryWait: time.Hour, MaxRetryWait: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = c.Me(t.Context()); err == nil {
		t.Fatal("no error")
	}
}

func TestPaging(t *testing.T) {
	var asked []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		cursor := r.URL.Query().Get("cursor")
		asked = append(asked, r.URL.Path+"?"+cursor)
		item := func(ids ...string) (out []map[string]any) {
			out = []map[string]any{}
			for _, id := range ids {
				out = append(out, map[string]any{"id": id})
			}
			return out
		}
		last := strings.HasPrefix(cursor, "after-")
		switch r.URL.Path {
		case "/api/v2/projects":
			switch cursor {
			case "b":
				reply(w, 200, map[string]any{"projects": item("c"), "pagination": map[string]any{"cursor": "c"}})
			case "c":
				reply(w, 200, map[string]any{"projects": item()})
			default:
				reply(w, 200, map[string]any{"projects": item("a", "b"), "pagination": map[string]any{"cursor": "b"}})
			}
		case "/api/v2/projects/p/branches":
			if last {
				reply(w, 200, map[string]any{"branches": item("b3"), "pagination": map[string]any{"sort_by": "updated_at"}})
			} else {
				reply(w, 200, map[string]any{"branches": item("b1", "b2"), "pagination": map[string]any{"next": "after-b2"}})
			}
		case "/api/v2/projects/p/operations":
			if last {
				refuse(w, 500, "", "internal error")
			} else {
				reply(w, 200, map[string]any{"operations": item("o1"), "pagination": map[string]any{"cursor": "after-o1"}})
			}
		}
	})
	var ids []string
	for p, err := range c.Projects(t.Context(), sdk.ProjectFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, p.ID)
	}
	if got := strings.Join(ids, " "); got != "a b c" || len(asked) != 3 {
		t.Errorf("projects %q in %v", got, asked)
	}
	branches, err := sdk.All(c.Branches(t.Context(), "p", sdk.BranchFilter{}))
	if err != nil || len(branches) != 3 || len(asked) != 5 {
		t.Errorf("branches %v, %v in %v", branches, err, asked)
	}
	// Stopping early asks for no further page.
	for range c.Branches(t.Context(), "p", sdk.BranchFilter{}) {
		break
	}
	if len(asked) != 6 {
		t.Errorf("asked %v", asked)
	}
	ops, err := sdk.All(c.Operations(t.Context(), "p", sdk.OperationFilter{}))
	if e, ok := errors.AsType[*sdk.Error](err); !ok || e.Status != 500 || len(ops) != 1 {
		t.Errorf("operations %v, %v", ops, err)
	}
}

// script answers each look at an operation with its next status, the last one for ever. "down" is a 503.
func script(t *testing.T, statuses map[string][]string) *sdk.Client {
	seen := map[string]int{}
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		id := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		s := statuses[id][min(seen[id], len(statuses[id])-1)]
		seen[id]++
		if s == "down" {
			refuse(w, 503, "STARTING", "starting")
			return
		}
		op := map[string]any{"id": id, "project_id": "p", "branch_id": "br-1", "action": "start_compute", "status": s}
		if s == "failed" {
			op["error"] = "no space left"
		}
		reply(w, 200, map[string]any{"operation": op})
	}, func(o *sdk.Options) { o.MaxRetries = -1 })
}

func TestWaitForOperations(t *testing.T) {
	c := script(t, map[string][]string{
		"one": {"scheduling", "running", "down", "running", "finished"},
		"two": {"running", "skipped"},
	})
	var progress []string
	ops, err := c.WaitForOperations(t.Context(), []sdk.Operation{
		{ID: "one", ProjectID: "p", Status: api.OperationStatusScheduling},
		{ID: "done", ProjectID: "p", Status: api.OperationStatusFinished},
		{ID: "two", ProjectID: "p", Status: api.OperationStatusScheduling},
	}, func(op sdk.Operation) { progress = append(progress, op.ID+" "+string(op.Status)) })
	if err != nil || len(ops) != 3 || ops[0].Status != "finished" || ops[1].ID != "done" || ops[2].Status != "skipped" {
		t.Errorf("%v, %v", ops, err)
	}
	if got := strings.Join(progress, ", "); got != "one running, one finished, two running, two skipped" {
		t.Errorf("progress: %s", got)
	}
}

func TestWaitSaysWhichOperationFailedAndWhy(t *testing.T) {
	c := script(t, map[string][]string{"one": {"running", "failed"}, "two": {"scheduling"}})
	_, err := c.WaitForOperations(t.Context(), []sdk.Operation{{ID: "one", ProjectID: "p"}, {ID: "two", ProjectID: "p"}}, nil)
	op, ok := sdk.IsOperationFailed(err)
	if !ok || op.ID != "one" || err.Error() != "start_compute of br-1 failed: no space left (operation one)" {
		t.Fatalf("%v", err)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	c := script(t, map[string][]string{"one": {"running"}})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.WaitForOperations(ctx, []sdk.Operation{{ID: "one", ProjectID: "p"}}, func(sdk.Operation) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestWaitGivesUpOnALostServer(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { refuse(w, 503, "", "down") },
		func(o *sdk.Options) { o.MaxRetries = -1; o.MaxOutage = 20 * time.Millisecond })
	if _, err := c.WaitForOperation(t.Context(), "p", "one"); !sdk.IsUnavailable(err) {
		t.Fatal(err)
	}
}

func TestDeleteOfWhatIsGone(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	out, err := c.DeleteBranch(t.Context(), "p", "b")
	if err != nil || out == nil || len(out.Operations) != 0 {
		t.Fatalf("%v, %v", out, err)
	}
}
