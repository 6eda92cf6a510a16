package control

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/ops"
	"github.com/boughdb/bough/internal/store"
)

// How a branch begins.
const (
	initParentData = "parent-data"
	initSchemaOnly = "schema-only" // a cluster of its own, filled with the definitions of another branch
)

// schemaParams are the parameters of the create_branch of a schema-only branch.
type schemaParams struct {
	SchemaOf string `json:"schema_of"` // branch
}

func schemaOf(branchID string) json.RawMessage {
	b, _ := json.Marshal(schemaParams{branchID}) // cannot fail
	return b
}

// canCopySchemas tells whether the programs are there that copy the schemas of a project's branches.
func (s *Service) canCopySchemas(ctx context.Context, p core.Project) error {
	tool, err := s.Builds.Dumper(ctx, p.PGVersion)
	if err != nil {
		return err
	}
	return tool.Restores(p.PGVersion)
}

// createSchemaOnly makes a branch from the template and fills it with another branch's definitions. No row, and no WAL, of
// that branch comes near it. Each try begins anew.
func (s *Service) createSchemaOnly(ctx context.Context, b core.Branch, op core.Operation) (commit ops.Commit, err error) {
	if b.State == core.BranchReady {
		return nil, nil
	}
	var params schemaParams
	if err := json.Unmarshal(op.Params, &params); err != nil {
		return nil, core.Wrap(err, "control.schema_only", "")
	}
	source, err := s.Store.BranchByID(ctx, params.SchemaOf)
	if err == nil && source.Deleting {
		err = core.NotFoundf("branch %q not found", params.SchemaOf)
	}
	if err != nil {
		return nil, gone(err)
	}
	project, err := s.Store.Project(ctx, b.ProjectID)
	if err != nil {
		return nil, gone(err)
	}
	if err := s.canCopySchemas(ctx, project); err != nil {
		return nil, err
	}
	tool, err := s.Builds.Dumper(ctx, project.PGVersion)
	if err != nil {
		return nil, err
	}
	if err := s.awaitCatalog(ctx, source.ID); err != nil {
		return nil, err
	}
	sourceID, done, err := s.reading(ctx, source, Moment{})
	if err != nil {
		return nil, err
	}
	defer done()
	from, up := s.Computes.SocketDir(sourceID)
	if !up {
		return nil, core.Errorf(core.KindUnavailable, "", "the compute of branch %s has just ended", source.ID)
	}

	if err := s.discard(ctx, b); err != nil { // of an earlier try
		return nil, err
	}
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			err = errors.Join(err, s.discard(clean, b))
		}
	}()
	build, err := s.build(ctx, project.PGVersion)
	if err != nil {
		return nil, err
	}
	if err := s.ensureTemplate(ctx, build); err != nil {
		return nil, err
	}
	if _, err := s.fork(ctx, templateRef(build.Major), ref(b), nil); err != nil {
		return nil, err
	}
	spec, err := s.spec(ctx, b, b.ID, core.Endpoint{})
	if err != nil {
		return nil, err
	}
	spec.IdleTimeout = -1
	to, err := s.Computes.Start(ctx, spec, s.persist(b.ID, b.ID))
	if err != nil {
		return nil, err
	}
	if err := tool.CopySchema(ctx, from, to.SocketDir); err != nil {
		return nil, err
	}
	catalog, size, err := s.look(ctx, b.ID, nil)
	if err != nil {
		return nil, err
	}
	if err := s.Computes.Stop(ctx, b.ID, compute.StopFast); err != nil {
		return nil, err
	}
	s.trim(ctx, ref(b))
	control, err := readControl(s.Volumes.Path(b.VolumeID))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, q store.Q) error {
		if _, err := q.LockBranchByID(ctx, b.ID); err != nil {
			return err
		}
		if err := q.DeleteHandle(ctx, b.ID); err != nil {
			return err
		}
		if _, err := storeCatalog(ctx, q, b.ID, catalog, op.ID); err != nil {
			return err
		}
		if err := q.SetBranchSize(ctx, b.ID, size); err != nil {
			return err
		}
		// Its history begins where it is ready, with a snapshot of its own.
		begin := core.Incarnation{BranchID: b.ID, Number: b.Incarnation, Fork: control.Checkpoint, BeginAt: time.Now()}
		return errors.Join(q.BranchReady(ctx, b.ID, 0, nil, false), q.PutIncarnation(ctx, begin))
	}, nil
}

// discard removes what was made of a branch that is not ready.
func (s *Service) discard(ctx context.Context, b core.Branch) error {
	if err := s.Computes.Stop(ctx, b.ID, compute.StopImmediate); err != nil {
		return err
	}
	return errors.Join(s.Store.DeleteHandle(ctx, b.ID), s.WAL.Delete(ctx, b.ID), s.Volumes.Delete(ctx, b.VolumeID))
}
