package e2e

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/sdk"
)

// TestMainJob does what Bough is for, kills the server in the middle of a branch, and does it all again.
func TestMainJob(t *testing.T) {
	for _, storage := range backends() {
		t.Run(storage, func(t *testing.T) {
			s := startOn(t, storage)
			p := mainJob(t, s)

			made, err := s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{Endpoints: readWrite()})
			if err != nil {
				t.Fatal(err)
			}
			s.Restart()
			s.settled(t)
			for _, op := range made.Operations {
				now, err := s.GetOperation(t.Context(), p.ID, op.ID)
				if err != nil {
					t.Fatal(err)
				}
				if !sdk.Done(*now) {
					t.Errorf("%s is %s", now.Action, now.Status)
				}
			}
			// Nothing stood in the way of this one: it must have been completed.
			conn := s.connect(t, (*made.ConnectionUris)[0].ConnectionURI)
			if n := value[int](t, conn, "select count(*) from items"); n != 1000 {
				t.Errorf("the branch that was interrupted has %d rows, want 1000", n)
			}
			again := mainJob(t, s)
			for _, project := range []*project{p, again} {
				if _, err := s.DeleteProject(t.Context(), project.ID); err != nil {
					t.Fatal(err)
				}
			}
			s.settled(t)
		})
	}
}

// mainJob creates a project, writes, branches, changes the branch, sleeps, wakes and reads.
func mainJob(t *testing.T, s *server) *project {
	t.Helper()
	p := s.project(t)
	conn := s.connect(t, p.URI)
	sql(t, conn, "create table items (id int primary key, note text)")
	n, err := conn.CopyFrom(t.Context(), pgx.Identifier{"items"}, []string{"id", "note"},
		pgx.CopyFromSlice(1000, func(i int) ([]any, error) { return []any{i, "row"}, nil }))
	if err != nil || n != 1000 {
		t.Fatalf("wrote %d rows: %v", n, err)
	}
	b := p.branch(t, "")
	child := s.connect(t, b.URI)
	if n := value[int](t, child, "select count(*) from items"); n != 1000 {
		t.Errorf("the branch has %d rows, want 1000", n)
	}
	sql(t, child, "delete from items")
	if n := value[int](t, child, "select count(*) from items"); n != 0 {
		t.Errorf("after the delete the branch has %d rows", n)
	}
	if n := value[int](t, conn, "select count(*) from items"); n != 1000 {
		t.Errorf("the parent has %d rows, want 1000", n)
	}
	p.suspend(t, p.Endpoint)
	p.suspend(t, b.Endpoint)
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("a session outlived the suspension of its endpoint")
	}
	s.settled(t)
	if pids := postmasters(s.dir + "/pool/volumes/" + b.ID); len(pids) != 0 {
		t.Errorf("a sleeping branch has the processes %v", pids)
	}
	if n := value[int](t, s.connect(t, p.URI), "select count(*) from items"); n != 1000 {
		t.Errorf("after waking the parent has %d rows, want 1000", n)
	}
	if n := value[int](t, s.connect(t, b.URI), "select count(*) from items"); n != 0 {
		t.Errorf("after waking the branch has %d rows, want 0", n)
	}
	return p
}
