package httpd

import (
	"context"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/control"
)

// GetProjectBranchSchema implements GET …/schema.
func (h *handlers) GetProjectBranchSchema(ctx context.Context, req api.GetProjectBranchSchemaRequestObject) (api.GetProjectBranchSchemaResponseObject, error) {
	p := req.Params
	tables := or(p.Format, "sql") == "json"
	schema, err := h.uc.BranchSchema(ctx, CallerFrom(ctx), req.ProjectID, req.BranchID, control.SchemaParams{
		Database: p.DBName, At: control.Moment{LSN: or(p.LSN, ""), Time: p.Timestamp}, Tables: tables,
	})
	if err != nil {
		return nil, err
	}
	if tables {
		return api.GetProjectBranchSchema200JSONResponse{JSON: &api.BranchSchemaTables{Tables: each(schema.Tables, schemaTable)}}, nil
	}
	return api.GetProjectBranchSchema200JSONResponse{SQL: &schema.SQL}, nil
}

// GetProjectBranchSchemaComparison implements GET …/compare_schema.
func (h *handlers) GetProjectBranchSchemaComparison(ctx context.Context, req api.GetProjectBranchSchemaComparisonRequestObject) (api.GetProjectBranchSchemaComparisonResponseObject, error) {
	p := req.Params
	diff, err := h.uc.CompareSchemas(ctx, CallerFrom(ctx), req.ProjectID, req.BranchID, control.CompareParams{
		Database: p.DBName, At: control.Moment{LSN: or(p.LSN, ""), Time: p.Timestamp},
		BaseBranchID: or(p.BaseBranchID, ""), BaseAt: control.Moment{LSN: or(p.BaseLSN, ""), Time: p.BaseTimestamp},
	})
	if err != nil {
		return nil, err
	}
	return api.GetProjectBranchSchemaComparison200JSONResponse{Diff: &diff}, nil
}

func schemaTable(t control.Table) api.SchemaTable {
	constraints := each(t.Constraints, func(k control.Constraint) api.SchemaConstraint {
		out := api.SchemaConstraint{Type: k.Type, Name: opt(k.Name), Columns: k.Columns}
		if r := k.Refers; r != nil {
			out.ReferencedTable = &api.SchemaReference{Schema: r.Schema, Table: r.Table, Columns: r.Columns}
		}
		return out
	})
	return api.SchemaTable{
		Schema: t.Schema, Name: t.Name, Constraints: &constraints,
		Columns: each(t.Columns, func(c control.Column) api.SchemaColumn {
			return api.SchemaColumn{Name: c.Name, Type: c.Type, Nullable: &c.Nullable, Generated: &c.Generated}
		}),
	}
}
