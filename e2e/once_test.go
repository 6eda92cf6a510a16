package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/boughdb/bough/sdk"
)

// once posts with an Idempotency-Key; an error means that no answer came.
func (s *server) once(t *testing.T, key, path, body string) (status int, answer string, replayed bool, err error) {
	t.Helper()
	s.mu.Lock()
	a := s.admin
	s.mu.Unlock()
	req, err := http.NewRequestWithContext(t.Context(), "POST", a.APIURL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+a.APIKey)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", false, err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	return res.StatusCode, string(raw), res.Header.Get("Idempotency-Replayed") == "true", err
}

// TestIdempotencyKey makes things once, however often the call is sent: again, side by side, after a kill.
func TestIdempotencyKey(t *testing.T) {
	s := start(t)
	p := s.project(t)
	path := "/projects/" + p.ID
	branches := func() int {
		t.Helper()
		n, err := s.CountBranches(t.Context(), p.ID, "")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	org := s.organization(t, s.admin.APIKey)
	for _, c := range []struct{ path, body, other string }{
		{"/projects", `{"project":{"name":"once & for all"}}`, `{"project":{"name":"twice"}}`},
		{path + "/branches", `{"branch":{"name":"b"},"endpoints":[{"type":"read_write"}]}`, `{}`},
		{path + "/branches", "", `{}`},
		{path + "/branches/" + p.Branch + "/roles", `{"role":{"name":"r"}}`, `{"role":{"name":"r2"}}`},
		{path + "/branches/" + p.Branch + "/databases", `{"database":{"name":"d","owner_name":"neondb_owner"}}`, `{"database":{"name":"d2","owner_name":"neondb_owner"}}`},
		{path + "/endpoints", `{"endpoint":{"branch_id":"` + p.Branch + `","type":"read_only","disabled":true}}`, `{"endpoint":{"branch_id":"` + p.Branch + `","type":"read_only"}}`},
		{"/api_keys", `{"key_name":"a key"}`, `{"key_name":"another"}`},
		{"/organizations/" + org + "/api_keys", `{"key_name":"a key","project_id":"` + p.ID + `"}`, `{"key_name":"a key"}`},
		{"/organizations/" + org + "/invitations", `{"invitations":[{"email":"a@example.com","role":"member"}]}`, `{"invitations":[{"email":"b@example.com","role":"member"}]}`},
		{path + "/permissions", `{"email":"a@example.com"}`, `{"email":"b@example.com"}`},
		{path + "/transfer_requests", `{"ttl_seconds":60}`, `{"ttl_seconds":61}`},
		{path + "/jwks", `{"jwks_url":"https://example.com/a,b.json","provider_name":"p"}`, `{"jwks_url":"https://example.com/b.json","provider_name":"p"}`},
	} {
		key := "key-" + c.path + fmt.Sprint(len(c.body))
		status, first, replayed, err := s.once(t, key, c.path, c.body)
		if err != nil || status != 200 && status != 201 || replayed {
			t.Fatalf("%s: %d %s, %v", c.path, status, first, err)
		}
		made := status
		// The same call, written in another way.
		status, again, replayed, err := s.once(t, key, c.path, strings.ReplaceAll(c.body, ",\"", " ,\n \""))
		if err != nil || status != made || !replayed || again != first {
			t.Errorf("%s again: %d, replayed %v, %v\n%s\n%s", c.path, status, replayed, err, first, again)
		}
		if status, text, _, _ := s.once(t, key, c.path, c.other); status != 422 || !strings.Contains(text, "IDEMPOTENCY_KEY_REUSED") {
			t.Errorf("%s, another call: %d %s", c.path, status, text)
		}
	}
	// A refused call leaves nothing under its key.
	if status, text, _, _ := s.once(t, "refused", path+"/branches", `{"branch":{"name":"b"}}`); status != 409 {
		t.Errorf("a taken name: %d %s", status, text)
	}
	if status, text, _, _ := s.once(t, "refused", path+"/branches", `{"branch":{"name":"b9"}}`); status != 201 {
		t.Errorf("the next try: %d %s", status, text)
	}
	for _, key := range []string{"", "two words", strings.Repeat("x", 256)} {
		if status, text, _, _ := s.once(t, key, path+"/branches", `{}`); status != 400 {
			t.Errorf("%q: %d %s", key, status, text)
		}
	}

	// Side by side.
	before := branches()
	var mu sync.Mutex
	answers := map[string]int{}
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			body := `{}`
			if i%2 == 1 {
				body = `{ }`
			}
			status, text, _, err := s.once(t, "side-by-side", path+"/branches", body)
			if err != nil || status != 201 {
				t.Errorf("%d %s, %v", status, text, err)
			}
			mu.Lock()
			answers[text]++
			mu.Unlock()
		})
	}
	wg.Wait()
	if n := branches(); n != before+1 || len(answers) != 1 {
		t.Errorf("%d branches more, %d answers", n-before, len(answers))
	}

	// Killed at some moment of the call: the next try makes it, or finds it made.
	for i := range 5 {
		before := branches()
		key := fmt.Sprint("killed-", i)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _, _, _ = s.once(t, key, path+"/branches", `{}`)
		}()
		select {
		case <-done:
		case <-time.After(time.Duration(i) * 7 * time.Millisecond): // not to wait for something: to kill at several moments
		}
		s.Kill9()
		<-done
		s.Start()
		status, text, _, err := s.once(t, key, path+"/branches", `{}`)
		if err != nil || status != 201 {
			t.Fatalf("%d %s, %v", status, text, err)
		}
		if n := branches(); n != before+1 {
			t.Errorf("killed after %d ms: %d branches more", i*7, n-before)
		}
	}
	if status, _, replayed, err := s.once(t, "side-by-side", path+"/branches", `{}`); err != nil || status != 201 || !replayed {
		t.Errorf("after restarts: %d, replayed %v, %v", status, replayed, err)
	}

	// What is stored cannot be read without the API key.
	rows, err := s.controlDB(t).Query(t.Context(), "SELECT answer FROM answers")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	stored := 0
	for ; rows.Next(); stored++ {
		var answer []byte
		if err := rows.Scan(&answer); err != nil || bytes.Contains(answer, []byte("br-")) || bytes.Contains(answer, []byte("npg_")) || bytes.Contains(answer, []byte("napi_")) {
			t.Errorf("an answer is stored as it is (%v)", err)
		}
	}
	if stored < 10 {
		t.Errorf("%d answers are stored", stored)
	}
	rows.Close()
	s.settled(t)
}

// TestOldOperationsGo keeps the record of operations as long as it is told.
func TestOldOperationsGo(t *testing.T) {
	s := start(t, "--operations-keep", "1s")
	p, err := s.CreateProject(t.Context(), sdk.ProjectCreate{}) // not waited for: that asks for operations, which go
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(opLimit)
	for {
		ops, err := sdk.All(s.Operations(t.Context(), p.Project.ID, sdk.OperationFilter{}))
		if err != nil {
			t.Fatal(err)
		}
		if len(ops) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d operations are still there", len(ops))
		}
		time.Sleep(pollEvery)
	}
	if conn := s.connect(t, p.ConnectionUris[0].ConnectionURI); value[int](t, conn, "SELECT 1") != 1 {
		t.Error("the project does not work any more")
	}
}
