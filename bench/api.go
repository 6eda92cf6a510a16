package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/store/storetest"
	"github.com/boughdb/bough/sdk"
)

const (
	apiProjects = 100
	apiBranches = 100 // of each
	apiRate     = 200 // requests a second
	apiWarm     = 50  // requests before them: connections, caches of statements
	apiAim      = "p99 ≤ 20 ms"
)

// restAPI: reads at a steady rate beside 10 000 branches in 100 projects, whose rows are written into the control database;
// and creates of a branch, one after another, up to their answer.
func (b *bench) restAPI(ctx context.Context) (rows []row, err error) {
	if err := b.seed(ctx); err != nil {
		return nil, err
	}
	project := fmt.Sprintf(storetest.ProjectID, 42)
	branch := fmt.Sprintf(storetest.BranchID, 42, 42)
	for _, read := range []struct{ what, path string }{
		{"GET one branch", "/projects/" + project + "/branches/" + branch},
		{"GET one project", "/projects/" + project},
		{"GET one endpoint", "/projects/" + project + "/endpoints/ep" + branch[2:]},
		{"GET a page of 100 projects", "/projects?limit=100"},
		{"GET a page of 100 branches", "/projects/" + project + "/branches?limit=100"},
		{"GET a page of 100 operations", "/projects/" + project + "/operations?limit=100"},
		{"GET the roles of a branch", "/projects/" + project + "/branches/" + branch + "/roles"},
	} {
		before, err := cpuOf(b.server.Process.Pid)
		if err != nil {
			return nil, err
		}
		took, err := b.steady(ctx, read.path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", read.what, err)
		}
		after, err := cpuOf(b.server.Process.Pid)
		if err != nil {
			return nil, err
		}
		each := (after - before) / time.Duration(len(took)+apiWarm)
		rows = append(rows, row{fmt.Sprintf("%s, %d a second", read.what, apiRate), took.String(), ms(each), "the server's CPU for each", "–", apiAim})
	}
	var creates series
	for range b.rounds {
		var made *sdk.BranchCreated
		d, err := timed(func() (err error) {
			made, err = b.client.CreateBranch(ctx, b.main.project, sdk.BranchCreateRequest{})
			return err
		})
		if err != nil {
			return nil, err
		}
		creates = append(creates, d)
		if _, err := b.client.WaitForOperations(ctx, made.Operations, nil); err != nil {
			return nil, err
		}
	}
	return append(rows, row{"POST a branch, up to the answer", creates.String(), "", "", "–", ""}), nil
}

// seed writes the rows. Nothing stands behind them, so the server must not look for it.
func (b *bench) seed(ctx context.Context) error {
	if err := b.firstRow(ctx, b.main.uri); err != nil { // its socket is beside that of the control database
		return err
	}
	if b.args = []string{"--reconcile-every", "24h"}; b.socket(b.main) == "" {
		return errors.New("no socket of the first project's compute")
	}
	q := url.Values{"host": {filepath.Join(filepath.Dir(b.socket(b.main)), "control")}, "user": {postgres.AdminRole}, "sslmode": {"disable"}}
	if _, err := b.restart(ctx); err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, "postgres:///bough?"+q.Encode())
	if err != nil {
		return err
	}
	defer pool.Close()
	orgs, err := b.client.Organizations(ctx)
	if err != nil || len(orgs) == 0 {
		return fmt.Errorf("no organization: %w", err)
	}
	fmt.Fprintln(os.Stderr, "  writing the rows …")
	return storetest.Fill(ctx, pool, orgs[0].ID, apiProjects, apiBranches)
}

// steady sends a read at a fixed rate, whether or not the ones before were answered, and measures each from the moment at which
// it was due.
func (b *bench) steady(ctx context.Context, path string) (series, error) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	defer client.CloseIdleConnections()
	get := func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.api+path, nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+b.key)
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err == nil && (res.StatusCode != http.StatusOK || !json.Valid(body)) {
			err = fmt.Errorf("%s: %s", res.Status, body)
		}
		return err
	}
	for range apiWarm {
		if err := get(); err != nil {
			return nil, err
		}
	}
	took := make(series, apiRate*b.seconds)
	errs := make(chan error, len(took))
	var group sync.WaitGroup
	began := time.Now()
	for i := range took {
		due := began.Add(time.Duration(i) * time.Second / apiRate)
		if err := sleep(ctx, time.Until(due)); err != nil {
			return nil, err
		}
		group.Go(func() {
			if err := get(); err != nil {
				errs <- err
			}
			took[i] = time.Since(due)
		})
	}
	group.Wait()
	select {
	case err := <-errs:
		return nil, err
	default:
		return took, nil
	}
}

// cpuOf is the processor time that a process has used, in user and kernel mode.
func cpuOf(pid int) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// After the name in parentheses: utime and stime are the 12th and 13th field, in ticks of 10 ms (proc(5)).
	_, rest, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat cannot be read: %s", pid, raw)
	}
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}
