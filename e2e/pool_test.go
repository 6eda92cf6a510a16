package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/boughdb/bough/sdk"
)

// poolStatus is what the tests read from `bough pool status --json`.
type poolStatus struct {
	Backend string `json:"backend"`
	Level   string `json:"level"`
	Names   bool   `json:"names"`
	Image   *struct {
		Size int64 `json:"size_bytes"`
	} `json:"image"`
	Pool *struct {
		Total int64 `json:"total_bytes"`
		Free  int64 `json:"free_bytes"`
	} `json:"pool"`
	Branches []struct {
		ID        string `json:"branch_id"`
		Name      string `json:"branch"`
		ProjectID string `json:"project_id"`
		Data      int64  `json:"data_bytes"`
		Exclusive *int64 `json:"data_exclusive_bytes"`
		WAL       int64  `json:"wal_bytes"`
	} `json:"branches"`
	Templates []struct {
		Volume string `json:"volume"`
	} `json:"templates"`
	ControlDB int64 `json:"control_database_bytes"`
}

func (s *server) poolStatus(t *testing.T, args ...string) (st poolStatus) {
	t.Helper()
	out, err := s.bough(append([]string{"pool", "status", "--json"}, args...)...)
	if err == nil {
		err = json.Unmarshal([]byte(out), &st)
	}
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// TestPoolGrows fills a small pool while clients write: it grows before anything is refused, and by hand, also while
// nothing runs.
func TestPoolGrows(t *testing.T) {
	needRoot(t, "it needs a pool image")
	for _, kind := range []string{"sparse", "preallocated"} {
		t.Run(kind, func(t *testing.T) {
			s := start(t, "--storage-size", "1GiB", fmt.Sprintf("--storage-preallocate=%v", kind == "preallocated"))
			p := s.project(t)
			conn := s.connect(t, p.URI)
			sql(t, conn, "create table journal (n int primary key)")
			sql(t, conn, "create table filler (n int, data text)")
			sql(t, conn, "alter table filler alter data set storage external")
			ctx, stop := context.WithCancel(t.Context())
			writer, written := s.connect(t, p.URI), 0
			var writing sync.WaitGroup
			writing.Go(func() {
				for ctx.Err() == nil {
					if _, err := writer.Exec(t.Context(), "insert into journal values ($1)", written); err != nil {
						t.Errorf("after %d rows: %v", written, err)
						return
					}
					written++
				}
			})
			defer writing.Wait()
			defer stop()
			for i := range 5 { // 0.5 GB in all
				sql(t, conn, "insert into filler select n, repeat('0123456789', 10000) from generate_series(1, 1000) n")
				if i == 3 {
					p.branch(t, "")
				}
			}
			grown := s.poolStatus(t)
			if grown.Image == nil || grown.Image.Size < 2<<30 || grown.Level != "ok" {
				t.Fatalf("the pool: %+v", grown)
			}
			out, err := s.bough("pool", "grow", "--by", "512MiB")
			if err != nil || !strings.Contains(out, "has grown from") {
				t.Errorf("%s %v", out, err)
			}
			stop()
			writing.Wait()
			s.Restart()
			now := s.poolStatus(t)
			if now.Image.Size < grown.Image.Size+512<<20 || now.Pool.Total>>20 != now.Image.Size>>20 {
				t.Errorf("image %d, pool %d; before %d", now.Image.Size, now.Pool.Total, grown.Image.Size)
			}
			for _, args := range [][]string{{"--to", "1GiB"}, {"--by", "0"}, {"--by", "100TiB"}, {"--by", "much"}, {}} {
				if out, err := s.bough(append([]string{"pool", "grow"}, args...)...); err == nil {
					t.Errorf("pool grow %v: %s", args, out)
				}
			}
			s.Down()
			<-s.exited
			if _, err := s.bough("pool", "grow", "--by", "256MiB"); err != nil {
				t.Error(err)
			}
			if left := s.leftovers(); len(left) > 0 {
				t.Errorf("left by growing what is not mounted: %v", left)
			}
			s.Start()
			if last := s.poolStatus(t); last.Image.Size != now.Image.Size+256<<20 || last.Pool.Total>>20 != last.Image.Size>>20 {
				t.Errorf("after growth while down: %+v", last)
			}
			if n := value[int](t, s.connect(t, p.URI), "select count(*) from journal"); n < written {
				t.Errorf("%d of %d acknowledged rows", n, written)
			}
			s.sound(t, p.Branch)
		})
	}
}

// TestPoolStatus names what uses the space, whether or not the server runs.
func TestPoolStatus(t *testing.T) {
	for _, storage := range backends() {
		t.Run(storage, func(t *testing.T) {
			s := startOn(t, storage)
			p := s.projectWith(t, sdk.ProjectCreate{DefaultEndpointSettings: suspendAfter(never), HistoryRetentionSeconds: new(int64(0))}) // history shares with its branch
			sql(t, s.connect(t, p.URI), "create table t as select n, repeat('x', 900) pad from generate_series(1, 40000) n")
			p.suspend(t, p.Endpoint) // what it has written is on the disk then
			name := "big-child"
			made, err := s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{
				Branch: &sdk.BranchCreate{Name: &name}, Endpoints: readWrite(),
			})
			if err != nil {
				t.Fatal(err)
			}
			s.wait(t, made.Operations)
			sql(t, s.connect(t, (*made.ConnectionUris)[0].ConnectionURI), "create table u as select n, repeat('x', 900) pad from generate_series(1, 80000) n")
			p.suspend(t, made.Endpoints[0].ID)

			st := s.poolStatus(t, "--exclusive")
			if st.Backend != storage || st.Level != "ok" || !st.Names || st.ControlDB <= 0 || len(st.Branches) != 2 || len(st.Templates) != 1 {
				t.Fatalf("%+v", st)
			}
			child, parent := st.Branches[0], st.Branches[1] // the largest first
			if child.Name != name || child.ID != made.Branch.ID || child.ProjectID != p.ID || parent.ID != p.Branch || child.WAL <= 0 {
				t.Errorf("%+v", st.Branches)
			}
			if shares := storage != "copy"; shares {
				if *parent.Exclusive > parent.Data/2 || *child.Exclusive < 60<<20 || *child.Exclusive > child.Data*3/4 {
					t.Errorf("parent %d of %d, child %d of %d are its own", *parent.Exclusive, parent.Data, *child.Exclusive, child.Data)
				}
			} else if *parent.Exclusive != parent.Data {
				t.Errorf("on copy %d of %d are the parent's own", *parent.Exclusive, parent.Data)
			}
			text, err := s.bough("pool", "status")
			if err != nil || !strings.Contains(text, name) || strings.Index(text, name) > strings.Index(text, p.Branch) {
				t.Errorf("%v\n%s", err, text)
			}
			s.Down()
			<-s.exited
			if st = s.poolStatus(t); st.Names || st.Backend != storage {
				t.Errorf("with everything stopped: %+v", st)
			}
			if storage != "btrfs" { // the image is not mounted now
				if len(st.Branches) != 2 || st.Branches[0].ID != made.Branch.ID {
					t.Errorf("with everything stopped: %+v", st.Branches)
				}
				if _, err := s.bough("pool", "grow", "--by", "1GiB"); err == nil || !strings.Contains(err.Error(), "no pool image") {
					t.Errorf("growing without an image: %v", err)
				}
			}
			if _, err := s.bough("pool", "status", "--data-dir", filepath.Join(s.base, "nothing")); err == nil {
				t.Error("status of no data directory")
			}
		})
	}
}
